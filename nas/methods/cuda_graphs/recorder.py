"""The interface of a recorder: it records work and replays it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

Replay = Callable[[], None]
# Runs for each place the work of its index, in the order of the places; nothing for an index that the place lacks.
Launch = Callable[[Sequence[int]], None]


class Recorder(Protocol):
    """See `nas.methods.cuda_graphs.cuda_graphs`. Tests use a recorder that runs the work again instead.

    kept: the bytes that recordings keep permanently.
    """

    device: torch.device
    kept: int

    def pool(self) -> Any:
        """Returns a memory pool for work of which only one piece runs at a time."""
        ...

    def rehearsing(self) -> AbstractContextManager[Any]:
        """The context in which work runs once before it is recorded."""
        ...

    def record(self, work: Replay, pool: Any) -> Replay:
        """Returns a function that repeats `work` in the same tensors.

        Raises RuntimeError if the work cannot be recorded.
        """
        ...

    def compose(self, places: Sequence[Mapping[int, Replay]]) -> Launch | None:
        """Returns one launch for the recordings of all places, chosen by index.

        None: replay them one after the other instead.
        """
        ...


def one_by_one(places: Sequence[Mapping[int, Replay]]) -> Launch:
    """Returns a function that replays recordings one after the other. It also finds recordings that are made later."""

    def launch(indices: Sequence[int]) -> None:
        for place, index in zip(places, indices, strict=True):
            if (replay := place.get(index)) is not None:
                replay()

    return launch


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error was raised because memory was short, or while such an error was handled.

    Libraries raise errors of other types inside a recording.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError) or any(
            name in str(seen) for name in ("out of memory", "ALLOC_FAILED")
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
