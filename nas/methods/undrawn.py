"""The effect of a weight step on the operations that it did not draw."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from nas.errors import ConfigError
from nas.supernet.choice import Choice

UNDRAWN = ("rest", "decay")


def check_undrawn(undrawn: str, optimizer: Optimizer) -> None:
    """Raises ConfigError for a name outside UNDRAWN, and for ``decay`` with another optimiser than SGD without
    dampening."""
    if undrawn not in UNDRAWN:
        raise ConfigError(
            f"searcher.undrawn must be one of {', '.join(UNDRAWN)}, got {undrawn!r}", fix="set searcher.undrawn=rest"
        )
    if undrawn == "decay" and not isinstance(optimizer, torch.optim.SGD):
        raise ConfigError(
            f"searcher.undrawn=decay is what SGD does with zeroed gradients, got {type(optimizer).__name__}",
            fix="set optim@weight_optim=sgd, or searcher.undrawn=rest",
        )
    if undrawn == "decay" and any(group["dampening"] for group in optimizer.param_groups):
        raise ConfigError(
            "searcher.undrawn=decay begins with a momentum of 0, got weight_optim.dampening",
            fix="set weight_optim.dampening=0, or searcher.undrawn=rest",
        )


class UndrawnDecay:
    """Gives undrawn operations a gradient of zeros, so that momentum and weight decay change their weights.

    This reproduces the published runs, because before torch 2 ``zero_grad`` zeroed the gradients.
    A weight takes part from the step, of either level, that first draws it: before this step it had no gradient to
    zero. The step gives the weight a momentum of 0, and SGD continues from 0 as it would without a momentum. So the
    optimiser's state holds the whole state, and a resumed search continues in the same way.

    choices: of the supernet, by key. optimizer: the weights' SGD.
    """

    def __init__(self, choices: Mapping[str, Sequence[Choice]], optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.drawable = {
            key: [
                [weight for choice in sharing for weight in list(choice.candidates)[index].parameters()]
                for index in range(len(sharing[0].names))
            ]
            for key, sharing in choices.items()
        }
        self.woken: set[tuple[str, int]] = set()

    def drew(self, keys: Iterable[str], drawn: Iterable[int]) -> None:
        """Records the candidates that a step of either level has drawn."""
        for key_and_index in zip(keys, drawn, strict=True):
            if key_and_index not in self.woken:  # later steps cost one lookup per choice only
                self.woken.add(key_and_index)
                key, index = key_and_index
                for weight in self.drawable[key][index]:
                    self.optimizer.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))

    def fill(self, weights: Iterable[nn.Parameter]) -> None:
        """Gives a gradient of zeros to every weight that takes part and was not drawn. Call between backward and
        step."""
        for weight in weights:
            if weight.grad is None and weight.requires_grad and self._takes_part(weight):
                weight.grad = torch.zeros_like(weight)

    def _takes_part(self, weight: nn.Parameter) -> bool:
        return self.optimizer.state.get(weight, {}).get("momentum_buffer") is not None
