"""The effect of a weight step on the operations that it did not draw."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

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


Needed = frozenset[tuple[str, int]]  # candidates, as (key, index)


class UndrawnDecay:
    """Gives undrawn operations a gradient of zeros, so that momentum and weight decay change their weights.

    This reproduces the published runs, because before torch 2 ``zero_grad`` zeroed the gradients.
    A weight takes part from the step, of either level, that first draws it: before this step it had no gradient to
    zero. The step gives the weight a momentum of 0, and SGD continues from 0 as it would without a momentum. So the
    optimiser's state holds the whole state, and a resumed search continues in the same way.

    Of a candidate inside another candidate, the weights take part once a step has drawn both.

    supernet: with its choices, by key. optimizer: the weights' SGD.
    """

    def __init__(self, supernet: nn.Module, choices: Mapping[str, Sequence[Choice]], optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        key_of: dict[nn.Module, str] = {choice: key for key, sharing in choices.items() for choice in sharing}
        stepped = {weight for group in optimizer.param_groups for weight in group["params"]}
        asleep: dict[Needed, list[nn.Parameter]] = {}
        for needed, weights in by_what_they_need(supernet, key_of, frozenset()):
            # Without a state for weights that the optimiser leaves out: it could not save its own.
            asleep.setdefault(needed, []).extend(weight for weight in weights if weight in stepped)
        self.asleep = list(asleep.items())

    def drew(self, keys: Iterable[str], drawn: Iterable[int]) -> None:
        """Records the candidates that a step of either level has drawn."""
        if not self.asleep:
            return
        now = set(zip(keys, drawn, strict=True))
        for needed, weights in self.asleep:
            for weight in weights if needed <= now else ():
                self.optimizer.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
        self.asleep = [(needed, weights) for needed, weights in self.asleep if not needed <= now]

    def fill(self, weights: Iterable[nn.Parameter]) -> None:
        """Gives a gradient of zeros to every weight that takes part and was not drawn. Call between backward and
        step."""
        for weight in weights:
            if weight.grad is None and weight.requires_grad and self._takes_part(weight):
                weight.grad = torch.zeros_like(weight)

    def _takes_part(self, weight: nn.Parameter) -> bool:
        return self.optimizer.state.get(weight, {}).get("momentum_buffer") is not None


def by_what_they_need(
    module: nn.Module, key_of: Mapping[nn.Module, str], needed: Needed
) -> Iterator[tuple[Needed, list[nn.Parameter]]]:
    """Yields the weights of candidates, with the candidates that a step must draw to run them."""
    own = list(module.parameters(recurse=False))
    if own and needed:
        yield needed, own
    candidates = list(module.candidates) if isinstance(module, Choice) else []
    for child in module.children():
        if not (candidates and child is module.candidates):
            yield from by_what_they_need(child, key_of, needed)
    for index, candidate in enumerate(candidates):
        yield from by_what_they_need(candidate, key_of, needed | {(key_of[module], index)})
