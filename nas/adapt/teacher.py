"""The teacher of a search or a training: the network before choices were inserted, or another network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from nas.adapt.insertion import KEEP
from nas.adapt.trained_weights import load_weights
from nas.data.spec import DataSpec
from nas.errors import ConfigError, SpaceError
from nas.runtime import distributed
from nas.runtime.runtime import Runtime
from nas.runtime.user_functions import Factory, call
from nas.spaces.space import Space
from nas.supernet.choice import Choice
from nas.supernet.copying import copied
from nas.supernet.genotype import Genotype
from nas.training.distillation import Distillation, check_numbers
from nas.training.trained import Trained

ORIGINAL = "original"


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network, and what is learnt from it.

    network: a module, which is copied, or what `nas.retrain` returned; or factory, arguments: a function or class that
    builds it, see `nas.spaces.Custom`. weights: the path of a file with its weights, see `nas.adapt.trained_weights`.
    Without network and factory it is the original: the network that the choices were put into, with its weights.
    share, temperature, features, feature_weight: see `Distillation`.
    Raises ConfigError for numbers out of range, and for a network and a factory together.
    """

    network: nn.Module | Trained | None = None
    factory: Factory | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    share: float = 0.5
    temperature: float = 2.0
    features: Mapping[Any, Any] = field(default_factory=dict)
    feature_weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.features, Mapping):
            raise ConfigError(
                f"teacher.features is {self.features!r}, expected paths of the network and of the teacher",
                fix="set e.g. teacher.features={layer1: layer1}",
            )
        check_numbers(
            share=self.share,
            temperature=self.temperature,
            features=self.features,
            feature_weight=self.feature_weight,
        )
        if isinstance(self.network, Trained):
            object.__setattr__(self, "network", self.network.network)
        if self.network is not None and not isinstance(self.network, nn.Module):
            got = f"the class {self.network.__name__}" if isinstance(self.network, type) else repr(self.network)
            raise ConfigError(
                f"teacher.network is {got:.80}, expected a trained module", fix="give the module itself, or a factory"
            )
        if self.network is not None and self.factory is not None:
            raise ConfigError("the teacher is given twice, as network and as factory", fix="leave one of them out")
        if self.weights is not None and not isinstance(self.weights, str | Path):
            raise ConfigError(
                f"teacher.weights is {self.weights!r}, expected the path of a file", fix="give the path, or None"
            )
        if self.factory is None and (self.arguments or (self.weights is not None and self.network is None)):
            raise ConfigError(
                "teacher.weights and teacher.arguments are of a teacher that a factory builds, got no teacher.factory",
                fix="set teacher.factory, or space.weights for the weights of the original",
            )

    def described(self) -> dict[str, object]:
        """Returns the arguments of the constructor; the class of a module, as no file can name the module itself."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return found | {"network": None if self.network is None else type(self.network)}

    def distillation(self, space: Space, spec: DataSpec, runtime: Runtime, *, seed: int) -> Distillation:
        """What a job learns from. space: what is searched, for the original. seed: of the job, by which a factory
        without weights gives what the search begins with. Raises SpaceError for a space that has no original."""
        network = runtime.place(self._built(space, spec, seed).eval().requires_grad_(False))
        if choice := next((path for path, module in network.named_modules() if isinstance(module, Choice)), None):
            raise SpaceError(
                f"the teacher has a Choice at {choice}, expected a trained network without choices",
                fix="give teacher='original', or the network as it was before nas.insert",
            )
        distributed.start_alike(network)
        return Distillation(
            teacher=network,
            classes=len(spec.class_names),
            share=self.share,
            temperature=self.temperature,
            # YAML reads the path 1 as a number.
            features={str(path): str(other) for path, other in self.features.items()},
            feature_weight=self.feature_weight,
        )

    def _built(self, space: Space, spec: DataSpec, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.network is not None:
                network = copied(cast(nn.Module, self.network))
            elif self.factory is not None:
                network = call(
                    self.factory,
                    self.arguments,
                    offered={"num_classes": lambda: spec.num_classes, "in_channels": lambda: spec.channels},
                    setting="teacher",
                )
            else:
                return original(space, spec, seed)
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"teacher.factory returned a {type(network).__name__}, expected an nn.Module",
                fix="return the model itself",
            )
        if self.weights is not None:
            load_weights(network, self.weights)
        return network


def original(space: Space, spec: DataSpec, seed: int) -> nn.Module:
    """The network before choices were inserted. Raises SpaceError if `nas.insert` did not insert them."""
    options = space.options(spec)
    made = [key for key, names in options.items() if KEEP not in names]
    if made:
        raise SpaceError(
            f"teacher=original is the network that nas.insert has put choices into, but the choice at {made[0]} was "
            f"not put there, as no candidate is called {KEEP!r}",
            fix="give the teacher: nas.adapt.Teacher(network=...), or teacher=custom teacher.factory=...",
        )
    torch.manual_seed(seed)  # again, as the options may have drawn
    return space.start(spec, Genotype(space.name, dict.fromkeys(options, KEEP)))


def teacher_of(given: Any) -> Teacher:
    """The teacher that is given in Python. Raises ConfigError for anything else."""
    if isinstance(given, Teacher):
        return given
    if isinstance(given, nn.Module | Trained):
        return Teacher(network=given)
    if given == ORIGINAL:
        return Teacher()
    got = f"the class {given.__name__}" if isinstance(given, type) else repr(given)
    raise ConfigError(
        f"teacher is {got:.80}, expected a trained module, {ORIGINAL!r}, or a nas.adapt.Teacher",
        fix="give the module itself",
    )
