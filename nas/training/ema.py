"""A moving average of a network's weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nas.supernet.copying import copied


class Average:
    """The exponential moving average of a network's weights over its training steps.

    network: a copy of the trained network, with the averaged weights. Batch-norm statistics are averaged too. Buffers
    of integers are copied.
    decay: in [0, 1), the part of the average that an update keeps. Update t = 0, 1, ... keeps min(decay, (1 + t) / (10
    + t)), so that a short run does not end on an average of its first steps.

    Not torch's AveragedModel, which copies its counter of updates to the GPU at each update, and the host waits for the
    copy.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.network = copied(network)
        self.decay = decay
        self.updates = 0
        self._averages, self._counts = by_kind(self.network)
        self._weights, self._live_counts = by_kind(network)

    def update(self) -> None:
        """Updates the average with the present weights."""
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(kept)(self._averages, self._weights, self.updates)
        for count, live in zip(self._counts, self._live_counts, strict=True):
            count.copy_(live)
        self.updates += 1


def by_kind(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the parameters and buffers of floating-point numbers, and the others."""
    tensors = [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floats, [tensor for tensor in tensors if not torch.is_floating_point(tensor)]
