"""The base class of search spaces. A space builds the supernet, and the plain network of a genotype."""

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Self

import torch
from torch import nn

from nas.data.inputs import each
from nas.data.spec import DataSpec
from nas.errors import ConfigError, GenotypeError
from nas.supernet.choice import Choice, choices
from nas.supernet.dropped_edge import settle
from nas.supernet.freezing import freeze
from nas.supernet.genotype import Genotype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space(ABC):
    """A search space: a frozen dataclass whose fields are the sizes of the space.

    name: the name of the space, which its genotypes contain. on_meta: whether `build` works on torch's meta device: it
    reads no values of tensors, as torch.linspace(...).tolist() does.
    """

    name: ClassVar[str]
    on_meta: ClassVar[bool] = False

    @abstractmethod
    def build(self, spec: DataSpec, *, affine: bool) -> nn.Module:
        """Builds the model with all of its choices.

        The model takes the inputs of `spec`, (N, C, H, W) float for images, and returns one tensor that suits the task,
        (N, classes) scores for classification.
        affine: False for a search, True for a network that will be frozen and retrained.
        """

    def supernet(self, spec: DataSpec) -> nn.Module:
        """The model that a search trains."""
        return self.build(spec, affine=False)

    def start(self, spec: DataSpec, genotype: Genotype) -> nn.Module:
        """The network of a genotype with the weights that its training begins with."""
        return self.network(spec, genotype)

    @property
    def digests(self) -> dict[str, str]:
        """The digests of files that the space reads, which a run that is resumed compares; by the names in
        `nas.training.records.CONTENTS`."""
        return {}

    def check(self, genotype: Genotype) -> None:
        """Raises GenotypeError if the genotype is of another space."""
        if genotype.space != self.name:
            raise GenotypeError(
                f"the genotype is of the space {genotype.space!r}, expected {self.name!r}",
                fix=f"add space={genotype.space}",
            )

    def network(self, spec: DataSpec, genotype: Genotype) -> nn.Module:
        """The plain network of a genotype, without choices. Raises GenotypeError if it does not fit the space."""
        self.check(genotype)
        return self.derived(self.build(spec, affine=True), spec, genotype)

    def derived(self, model: nn.Module, spec: DataSpec, genotype: Genotype) -> nn.Module:
        """A model of the space without its choices, in place: see `nas.supernet.freezing.freeze`."""
        network = freeze(model, genotype.choices)
        settle(network, lambda device: each(spec.zeros(device=device, batch=2)))
        return network

    def sketching(self) -> AbstractContextManager[Any]:
        """A context for building models that are inspected but never run. Takes no random numbers, and no memory on
        torch's meta device."""
        return torch.device("meta") if self.on_meta else torch.random.fork_rng(devices=[])

    def options(self, spec: DataSpec) -> Mapping[str, Sequence[str]]:
        """choice key -> candidate names; empty for a model without choices."""
        with self.sketching():
            model = self.build(spec, affine=True)
            found = choices(model) if any(isinstance(module, Choice) for module in model.modules()) else {}
            return {key: sharing[0].names for key, sharing in found.items()}

    def resized(self, sizes: Mapping[str, Any]) -> Self:
        """The same space with some of its fields changed, e.g. {"channels": 36, "cells": 20} for retraining.

        Raises ConfigError for a size that is no field, or if the constructor takes something else than fields, which a
        copy and a checkpoint would lose.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        if lost := [name for name in inspect.signature(type(self)).parameters if name not in fields]:
            raise ConfigError(
                f"the space {self.name} has a constructor of its own that takes {', '.join(lost)}, expected fields",
                fix="make the class a dataclass(frozen=True, kw_only=True), and these its fields: see CONTRIBUTING.md",
            )
        unknown = [name for name in sizes if name not in fields]
        if unknown:
            raise ConfigError(
                f"retrain.network sets {', '.join(unknown)}, which the space {self.name} does not have",
                fix=f"set any of {', '.join(fields)}",
            )
        return dataclasses.replace(self, **sizes)


MOST = 100_000  # of any size: such a network takes hours to build


def at_least(minimum: int, **sizes: int) -> None:
    """Raises ConfigError unless every named size is an integer >= minimum, and at most MOST."""
    for name, value in sizes.items():
        if type(value) is int and value > MOST:
            raise ConfigError(f"space.{name} must be at most {MOST}, got {value}", fix=f"set space.{name}={minimum}")
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ConfigError(
                f"space.{name} must be an integer >= {minimum}, got {value!r}", fix=f"set space.{name}={minimum}"
            )
