"""Which candidates are skips and which have no parameters, told from the modules and not from their names."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.inputs import Inputs
from nas.supernet.choice import Choice
from nas.supernet.every_candidate import Condition, Part, keys_of, placed, run_every_candidate

Candidate = tuple[str, str]  # choice key, name


@dataclass(frozen=True)
class Counts:
    """Of a derived architecture. kept: choices that are part of it and not dropped; the others are among these."""

    kept: int
    skips: int
    parameter_free: int


@dataclass(frozen=True)
class Kinds:
    """parameter_free: candidates that hold no parameters, wherever they stand; ``none`` is one.
    skips: those of them that return an input unchanged, wherever they stand. A skip_connect that has to halve the
    resolution has parameters and is none; a layer that is the identity in eval mode alone, as dropout, is one.
    places: choice key -> what has to be drawn for a choice of that key to be in the network, for each such choice.

    A candidate with choices inside is neither: those choices are counted themselves.
    """

    parameter_free: frozenset[Candidate]
    skips: frozenset[Candidate]
    places: Mapping[str, frozenset[Condition]]

    def count(self, chosen: Mapping[str, str | None]) -> Counts:
        """chosen: of a genotype."""
        kept = [
            (key, name)
            for key, name in chosen.items()
            if name is not None and any(condition <= chosen.items() for condition in self.places[key])
        ]
        return Counts(
            len(kept), sum(pair in self.skips for pair in kept), sum(pair in self.parameter_free for pair in kept)
        )


def kinds_of(model: nn.Module, inputs: Inputs) -> Kinds:
    """Of a model's candidates. inputs: a small batch, on its device. The model, and torch's random numbers, stay as
    they are."""
    free: dict[Candidate, list[bool]] = defaultdict(list)
    skip: dict[Candidate, list[bool]] = defaultdict(list)

    def observe(part: Part, run: Callable[[], Any]) -> Any:
        if part.key is not None and part.name is not None:
            plain = not any(isinstance(module, Choice) for module in part.module.modules())
            bare = plain and next(part.module.parameters(), None) is None
            free[part.key, part.name].append(bare)
            skip[part.key, part.name].append(bare and is_identity(part))
        return run()

    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):  # a candidate may draw, as noise does
        run_every_candidate(model, inputs, observe)
    places: dict[str, set[Condition]] = defaultdict(set)
    key_of = keys_of(model)
    for condition, module in placed(model):
        if isinstance(module, Choice):
            places[key_of[module]].add(condition)
    return Kinds(
        frozenset(candidate for candidate, found in free.items() if all(found)),
        frozenset(candidate for candidate, found in skip.items() if all(found)),
        {key: frozenset(conditions) for key, conditions in places.items()},
    )


def is_identity(part: Part) -> bool:
    """Whether the part returns one of its inputs unchanged, whatever it is given there. Draws random numbers."""

    def another(value: Any) -> Any:
        # Of both signs, as what stands before a choice may be a ReLU and the choice between activations.
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape).to(value)

    args, kwargs = tuple(map(another, part.args)), {name: another(value) for name, value in part.kwargs.items()}
    # Compared with copies: a module may work in place.
    before = [value.clone() for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    output = part.module(*args, **kwargs)
    return isinstance(output, Tensor) and any(torch.equal(output, value) for value in before)
