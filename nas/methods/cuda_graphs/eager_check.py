"""Runs a module without a replay, to compare the replay with it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas.runtime.buffers import Buffers
from nas.runtime.precision import autocast_without_cache
from nas.spaces.cell import Cell


class Reference:
    """The result of the module itself on a batch."""

    @torch.no_grad()
    def __init__(self, module: nn.Module, states: Sequence[Tensor]) -> None:
        self._buffers = Buffers(module)
        call = module._call_impl
        try:
            # With the cache, recordings in this pass would fail: a GPU refuses to let the stream of the casts wait for
            # the stream that is recorded.
            with autocast_without_cache(states[0].device.type):
                returned = call(list(states)) if isinstance(module, Cell) else call(*states)
        finally:
            self._buffers.put_back()
        self._expected = list(returned) if isinstance(returned, list | tuple) else [returned]

    def put_back(self) -> None:
        """Restores the buffers."""
        self._buffers.put_back()

    @torch.no_grad()
    def is_like(self, values: Sequence[Tensor]) -> bool:
        """Says whether two results are equal up to rounding.

        Nonfinite numbers count as equal: others check for them.
        """
        if len(values) != len(self._expected):
            return False
        for one, two in zip(values, self._expected, strict=True):
            if not isinstance(two, Tensor) or one.shape != two.shape:
                return False
            if two.isfinite().all() and not (one - two).norm() <= 0.1 * two.norm():
                return False
        return True
