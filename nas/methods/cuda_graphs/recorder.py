"""What records work and replays it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

Replay = Callable[[], None]


class Recorder(Protocol):
    """See `nas.methods.cuda_graphs.cuda_graphs`; tests have one that does the work again."""

    device: torch.device

    def pool(self) -> Any:
        """A piece of memory for work of which only one is under way at a time."""
        ...

    def rehearsing(self) -> AbstractContextManager[Any]:
        """The context in which work runs once before it is recorded."""
        ...

    def record(self, work: Replay, pool: Any) -> Replay:
        """What does again what `work` does, in the same places. Raises RuntimeError if it cannot be recorded."""
        ...
