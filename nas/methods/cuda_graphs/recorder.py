"""What records work and replays it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

Replay = Callable[[], None]
# Runs for each place the work of its index, in the order of the places; nothing for an index that the place lacks.
Launch = Callable[[Sequence[int]], None]


class Recorder(Protocol):
    """See `nas.methods.cuda_graphs.cuda_graphs`; tests have one that does the work again.

    kept: bytes that recordings keep for good.
    """

    device: torch.device
    kept: int

    def pool(self) -> Any:
        """A piece of memory for work of which only one is under way at a time."""
        ...

    def rehearsing(self) -> AbstractContextManager[Any]:
        """The context in which work runs once before it is recorded."""
        ...

    def record(self, work: Replay, pool: Any) -> Replay:
        """What does again what `work` does, in the same places. Raises RuntimeError if it cannot be recorded."""
        ...

    def compose(self, places: Sequence[Mapping[int, Replay]]) -> Launch | None:
        """One launch of what was recorded for each place, by its index. None: replay one after the other instead."""
        ...


def one_by_one(places: Sequence[Mapping[int, Replay]]) -> Launch:
    """Replays one after the other. Knows what is recorded later, too."""

    def launch(indices: Sequence[int]) -> None:
        for place, index in zip(places, indices, strict=True):
            if (replay := place.get(index)) is not None:
                replay()

    return launch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it was raised for want of memory, or while such an error was handled: libraries call it by other names
    inside of a recording."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError) or any(
            name in str(seen) for name in ("out of memory", "ALLOC_FAILED")
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
