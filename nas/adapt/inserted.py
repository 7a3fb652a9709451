"""A search space around a network that has weights: choices put into it by the names of makers."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nas.adapt.heads import fewer_heads
from nas.adapt.insertion import Maker, insert
from nas.adapt.makers import depthwise, factorised, skip, smaller_kernel
from nas.adapt.narrowing import narrower
from nas.adapt.trained_weights import load_weights, read_state
from nas.data.inputs import each
from nas.data.spec import DataSpec
from nas.errors import CheckpointError, ConfigError, NasError, described
from nas.runtime.runtime import device_of
from nas.spaces.custom import Custom
from nas.supernet.copying import copied
from nas.supernet.genotype import Genotype
from nas.training.distillation import digest_of

MAKERS: dict[str, Callable[..., Maker]] = {
    "depthwise": depthwise,
    "factorised": factorised,
    "fewer_heads": fewer_heads,
    "narrower": narrower,
    "skip": skip,
    "smaller_kernel": smaller_kernel,
}


@dataclass(frozen=True, kw_only=True)
class Inserted(Custom):
    """The network of a factory with choices between its modules and what could stand in for them.

    factory, arguments: see `Custom`; the network has its norms with affine=True. places: path of modules -> makers, as
    in `nas.adapt.insert`, by the names of `MAKERS`: ``skip``, ``{narrower: 0.5}``, ``{narrower: [0.5, 0.25]}``, with
    other arguments ``{narrower: {fractions: [0.5], multiple_of: 1}}``, or a list of these. weights: the path of a file
    with the network's weights, see `nas.adapt.trained_weights`; None for those that the factory gives it.

    A search starts from these weights, and so does a retraining from scratch. Files of a trained network need neither
    the weights nor their path.
    """

    name = "inserted"
    places: Mapping[str, Any]
    weights: str | None = None
    _built: list[tuple[DataSpec, nn.Module]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises ConfigError for places without names of makers, or with other arguments than theirs."""
        if not isinstance(self.places, Mapping) or not self.places:
            raise ConfigError(
                f"space.places is {self.places!r}, expected the paths of modules and makers for them",
                fix="set e.g. space.places={layer*.*: [skip, {narrower: 0.5}]}",
            )
        for where, makers in self.places.items():
            makers_of(where, makers)

    def build(self, spec: DataSpec, *, affine: bool) -> nn.Module:
        """The network with its choices, of untrained weights: for its structure. The last one is kept, as factors of
        large weights take seconds."""
        if not self._built or self._built[0][0] != spec:
            with torch.random.fork_rng(devices=[]):
                self._built[:] = [(spec, self._with_choices(super().build(spec, affine=True), spec))]
        return copied(self._built[0][1])

    def supernet(self, spec: DataSpec) -> nn.Module:
        return self._trained(spec)

    def start(self, spec: DataSpec, genotype: Genotype) -> nn.Module:
        self.check(genotype)
        return self.derived(self._trained(spec), spec, genotype)

    def _trained(self, spec: DataSpec) -> nn.Module:
        network = super().build(spec, affine=True)
        if self.weights is not None:
            load_weights(network, self.weights)
        return self._with_choices(network, spec)

    def _with_choices(self, network: nn.Module, spec: DataSpec) -> nn.Module:
        places: dict[str | type[nn.Module], list[Maker]] = {}
        # YAML reads the path 1 as a number.
        places |= {str(where): makers_of(where, makers) for where, makers in self.places.items()}
        return insert(network, places, example=each(spec.zeros(device=device_of(network), batch=2)))

    @property
    def digests(self) -> dict[str, str]:
        with contextlib.suppress(CheckpointError):  # a network that is trained already does not need the file
            return {} if self.weights is None else {"space_weights": digest_of(read_state(self.weights))}
        return {}

    def described(self) -> dict[str, object]:
        return {**super().described(), "places": dict(self.places), "weights": self.weights}


def makers_of(where: str, given: Any) -> list[Maker]:
    """The makers that a plain description names. Raises ConfigError, naming the place, for anything else."""
    return [
        maker_of(where, one)
        for one in (given if isinstance(given, Sequence) and not isinstance(given, str) else [given])
    ]


def maker_of(where: str, given: Any) -> Maker:
    name: Any = given if isinstance(given, str) else None
    value: Any = None
    if isinstance(given, Mapping) and len(given) == 1:
        ((name, value),) = given.items()
    if name not in MAKERS:
        raise ConfigError(
            f"space.places has {given!r} at {where}, expected some of {', '.join(MAKERS)}",
            fix="write e.g. skip, or {narrower: 0.5}; with other makers call nas.insert in Python, and give the model",
        )
    named: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {}
    fractions = named.pop("fractions", []) if isinstance(value, Mapping) else value
    several = isinstance(fractions, Sequence) and not isinstance(fractions, str)
    numbers: Sequence[Any] = [] if fractions is None else fractions if several else [fractions]
    try:
        return MAKERS[name](*numbers, **named)
    except NasError:
        raise
    except TypeError as error:
        raise ConfigError(
            f"space.places has {given!r} at {where}, whose arguments do not fit ({described(error)})",
            fix="write e.g. {narrower: 0.5}, or {smaller_kernel: 3}",
        ) from error
