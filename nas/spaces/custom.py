"""A search space from the user's own function, which builds a module with choices in it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nas.data.spec import DataSpec
from nas.errors import ConfigError, SpaceError
from nas.runtime.user_functions import Factory, call, import_path
from nas.spaces.space import Space
from nas.supernet.copying import copied


@dataclass(frozen=True, kw_only=True)
class Custom(Space):
    """A search space that the user's factory builds.

    factory: a function or class that returns an ``nn.Module`` with `Choice` modules in it; or such a module itself,
    which is copied with its weights. arguments: the keyword arguments of the factory.

    The factory also receives each of the following arguments that its signature names and `arguments` does not set:
    spec: the `DataSpec`, which has all facts about the data;
    num_classes: int; in_channels: int, the first size of the only input;
    affine: bool, for batch norms: False in a search and True in the derived network.

    The factory must build the same structure in every call, as it builds both the supernet and the derived network.
    """

    name = "custom"
    factory: Factory | nn.Module
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self, spec: DataSpec, *, affine: bool) -> nn.Module:
        """Raises ConfigError if the factory does not take its arguments. Raises SpaceError if the factory returns no
        module, or a lazy module, whose sizes are unknown before the first forward pass."""
        if isinstance(self.factory, nn.Module):
            if self.arguments:
                raise ConfigError(
                    f"a model that is built already takes no arguments, got {', '.join(self.arguments)}",
                    fix="give the function or class that builds it as space.factory",
                )
            check_sizes_known(self.factory, type(self.factory).__name__)
            return copied(self.factory)
        model = call(
            self.factory,
            self.arguments,
            offered={
                "spec": lambda: spec,
                "num_classes": lambda: spec.num_classes,
                "in_channels": lambda: spec.channels,
                "affine": lambda: affine,
            },
            setting="space",
        )
        if not isinstance(model, nn.Module):
            raise SpaceError(
                f"space.factory {import_path(self.factory)} returned a {type(model).__name__}, expected an nn.Module",
                fix="return the model itself",
            )
        check_sizes_known(model, import_path(self.factory))
        return model

    def described(self) -> dict[str, object]:
        """Returns the arguments of the constructor; the class of a module, as no file can name the module itself."""
        factory = type(self.factory) if isinstance(self.factory, nn.Module) else self.factory
        return {"factory": factory, "arguments": dict(self.arguments)}

    def resized(self, sizes: Mapping[str, Any]) -> "Custom":
        """Returns the same space with other arguments. Only `build` checks whether the factory takes the arguments."""
        return replace(self, arguments={**self.arguments, **sizes})

    @contextlib.contextmanager
    def sketching(self) -> Iterator[None]:
        # Not on the meta device: a factory may read values of tensors, e.g. rates from torch.linspace(...).tolist().
        with torch.random.fork_rng(devices=[]):
            yield


def check_sizes_known(model: nn.Module, name: str) -> None:
    """Raises SpaceError for a lazy module. name: of what made the model."""
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise SpaceError(
                f"space.factory {name} returned a lazy module, whose {path} has no shape yet",
                fix="give it its sizes, e.g. nn.Linear(16, 10) instead of nn.LazyLinear(10)",
            )
