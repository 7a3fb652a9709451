"""Finds the candidates that are skips or have no parameters, by their modules and not by their names."""

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
    """Numbers of operations in a derived architecture.

    kept: choices that are part of the network and not dropped. skips, parameter_free: how many of these have the kind.
    """

    kept: int
    skips: int
    parameter_free: int


@dataclass(frozen=True)
class Kinds:
    """The kinds of a model's candidates.

    parameter_free: candidates without parameters at every place, e.g. ``none``.
    skips: parameter-free candidates that return an input unchanged at every place. A skip_connect that halves the
    resolution has parameters and is no skip. A layer that is the identity in eval mode only, e.g. dropout, is a skip.
    places: choice key -> for each choice with this key, the draws under which the choice is in the network.

    A candidate with choices inside has neither kind, because those choices count themselves.
    """

    parameter_free: frozenset[Candidate]
    skips: frozenset[Candidate]
    places: Mapping[str, frozenset[Condition]]

    def count(self, chosen: Mapping[str, str | None]) -> Counts:
        """Counts the kinds in an architecture. chosen: the choices of a genotype."""
        kept = [
            (key, name)
            for key, name in chosen.items()
            if name is not None and any(condition <= chosen.items() for condition in self.places[key])
        ]
        return Counts(
            len(kept), sum(pair in self.skips for pair in kept), sum(pair in self.parameter_free for pair in kept)
        )


def kinds_of(model: nn.Module, inputs: Inputs) -> Kinds:
    """Finds the kinds of a model's candidates. Leaves the model and torch's random state unchanged.

    inputs: a small batch, on the model's device.
    """
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
    with torch.random.fork_rng(devices=sorted(devices, key=str)):  # a candidate may draw random numbers, e.g. noise
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
    """Whether the part returns one of its inputs unchanged, tested with random inputs."""

    def another(value: Any) -> Any:
        # Inputs of both signs: a choice between activations may follow a ReLU, whose outputs have one sign only.
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape).to(value)

    args, kwargs = tuple(map(another, part.args)), {name: another(value) for name, value in part.kwargs.items()}
    # Compare with copies, because a module may work in place.
    before = [value.clone() for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    output = part.module(*args, **kwargs)
    return isinstance(output, Tensor) and any(torch.equal(output, value) for value in before)
