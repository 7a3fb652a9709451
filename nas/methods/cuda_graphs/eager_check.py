"""What a module does by itself, beside which its replay is held."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas.runtime.buffers import Buffers
from nas.spaces.cell import Cell


class Reference:
    """What a module itself makes of a batch, to compare with a replay."""

    @torch.no_grad()
    def __init__(self, module: nn.Module, states: Sequence[Tensor]) -> None:
        self._buffers = Buffers(module)
        call = module._call_impl
        try:
            returned = call(list(states)) if isinstance(module, Cell) else call(*states)
        finally:
            self._buffers.put_back()
        self._expected = list(returned) if isinstance(returned, list | tuple) else [returned]

    def put_back(self) -> None:
        """The buffers, as they were before."""
        self._buffers.put_back()

    @torch.no_grad()
    def is_like(self, values: Sequence[Tensor]) -> bool:
        """But for roundings. Numbers that are not finite are somebody else's to find."""
        if len(values) != len(self._expected):
            return False
        for one, two in zip(values, self._expected, strict=True):
            if not isinstance(two, Tensor) or one.shape != two.shape:
                return False
            if two.isfinite().all() and not (one - two).norm() <= 0.1 * two.norm():
                return False
        return True
