"""A moving average of a network's weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nas.data.inputs import dtype_name
from nas.errors import ConfigError
from nas.runtime import distributed
from nas.supernet.copying import copied


class Average:
    """The exponential moving average of a network's weights over its training steps.

    network: a copy of the trained network, with the averaged weights. Batch-norm statistics are averaged too. Buffers
    of integers are copied, and so are buffers whose shape or type has changed, and what get_extra_state returns. Where
    the average of a buffer is not finite, as in a mask of -inf, it is the present number.
    decay: in [0, 1), the part of the average that an update keeps. Update t = 0, 1, ... keeps min(decay, (1 + t) / (10
    + t)), so that a short run does not end on an average of its first steps.

    Not torch's AveragedModel, which copies its counter of updates to the GPU at each update, and the host waits for the
    copy.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.network = copied(network)
        self.decay = decay
        self.updates = 0
        self._weights = list(zip(self.network.parameters(), network.parameters(), strict=True))
        self._modules = list(zip(self.network.modules(), network.modules(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Updates the average with the present weights."""
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs: dict[Tensor, Tensor] = {}  # of what is averaged; a tensor of two modules once
        buffers = self._buffers()
        for mine, live in (*self._weights, *buffers):
            if mine.is_floating_point() or mine.is_complex():
                pairs[mine] = live
            else:
                mine.copy_(live)
        get_ema_multi_avg_fn(kept)(list(pairs), list(pairs.values()), self.updates)
        replace_infinite({mine: pairs[mine] for mine, _ in buffers if mine in pairs})
        for module, other in self._modules:
            if has_extra_state(type(other)):
                module.set_extra_state(copy.deepcopy(other.get_extra_state()))
        self.updates += 1

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        """The present buffers of both networks, as a step may replace one: ``self.mean = 0.9 * self.mean + ...``."""
        found = []
        for module, other in self._modules:
            for name, live in other._buffers.items():
                mine = module._buffers.get(name)
                if mine is not None and live is not None and form(mine) == form(live):
                    found.append((mine, live))
                elif mine is not live:
                    persistent = name not in other._non_persistent_buffers_set
                    module.register_buffer(name, None if live is None else live.clone(), persistent=persistent)
        return found


def replace_infinite(pairs: Mapping[Tensor, Tensor]) -> None:
    """Gives averages that are not finite the present numbers. pairs: average -> present numbers.

    A mask of -inf would become NaN, as inf - inf is. Takes a few kernels for all tensors, as networks have hundreds.
    """
    averages = list(pairs)
    for bucket in distributed.buckets(averages):
        some = [averages[position] for position in bucket]
        mine, live = (torch.cat([one.flatten() for one in ones]) for ones in (some, [pairs[one] for one in some]))
        finite = torch.where(mine.isfinite(), mine, live).split([one.numel() for one in some])
        torch._foreach_copy_(some, [part.view(one.shape) for part, one in zip(finite, some, strict=True)])


def check_averaged(network: nn.Module) -> None:
    """Raises ConfigError for weights in 16 bits: their average would not move, as an update adds less than rounding
    takes away."""
    for name, weight in network.named_parameters():
        if weight.requires_grad and weight.dtype in (torch.float16, torch.bfloat16):
            raise ConfigError(
                f"retrain.average takes weights in float32 or wider, got {name} in {dtype_name(weight.dtype)}",
                fix="hold the weights in float32, e.g. with runtime.precision=bf16, or set retrain.average=0",
            )


def form(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def has_extra_state(kind: type[nn.Module]) -> bool:
    """Whether modules of a class return an extra state and take it back, which torch asks of neither."""
    return all(getattr(kind, name) is not getattr(nn.Module, name) for name in ("get_extra_state", "set_extra_state"))
