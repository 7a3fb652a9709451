"""A space of the user's own: whatever builds a module with choices in it."""

import contextlib
import copy
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


@dataclass(frozen=True, kw_only=True)
class Custom(Space):
    """factory: a function or class that returns an ``nn.Module`` with `Choice` modules in it; or such a module itself,
    which is copied with the weights that it has. arguments: the factory's keyword arguments.

    It is also given those of these that its signature names and `arguments` does not:
    spec: the `DataSpec`, for whatever the others do not tell;
    num_classes: int; in_channels: int, the first size of the only input;
    affine: bool, False while searching and True in the derived network, for batch norms.

    It must build modules of the same structure every time: the supernet and the derived network both come from it.
    """

    name = "custom"
    factory: Factory | nn.Module
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self, spec: DataSpec, *, affine: bool) -> nn.Module:
        """Raises ConfigError if the factory does not take its arguments, SpaceError if it returns no module, or one
        whose sizes are not known before it has run."""
        if isinstance(self.factory, nn.Module):
            if self.arguments:
                raise ConfigError(
                    f"a model that is built already takes no arguments, got {', '.join(self.arguments)}",
                    fix="give the function or class that builds it as space.factory",
                )
            return copy.deepcopy(self.factory)
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
        for path, tensor in (*model.named_parameters(), *model.named_buffers()):
            if is_lazy(tensor):
                raise SpaceError(
                    f"space.factory {import_path(self.factory)} returned a lazy module, whose {path} has no shape yet",
                    fix="give it its sizes, e.g. nn.Linear(16, 10) instead of nn.LazyLinear(10)",
                )
        return model

    def described(self) -> dict[str, object]:
        """The arguments it was made with; of a module its class, as no file can name the module itself."""
        factory = type(self.factory) if isinstance(self.factory, nn.Module) else self.factory
        return {"factory": factory, "arguments": dict(self.arguments)}

    def resized(self, sizes: Mapping[str, Any]) -> "Custom":
        """The same with other arguments; whether the factory takes them shows when it is called."""
        return replace(self, arguments={**self.arguments, **sizes})

    @contextlib.contextmanager
    def sketching(self) -> Iterator[None]:
        # Not on the meta device: a factory may well read its tensors, e.g. rates from torch.linspace(...).tolist().
        with torch.random.fork_rng(devices=[]):
            yield
