"""A search space from the user's own function, which builds a module with choices in it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nas.data.spec import DataSpec
from nas.errors import ConfigError, SpaceError
from nas.runtime import distributed
from nas.runtime.user_functions import Factory, call, import_path
from nas.spaces.space import Space
from nas.supernet.choice import Choice
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
        module, a lazy module, whose sizes are unknown before the first forward pass, or a model that it has returned
        before."""
        if isinstance(self.factory, nn.Module):
            if self.arguments:
                raise ConfigError(
                    f"a model that is built already takes no arguments, got {', '.join(self.arguments)}",
                    fix="give the function or class that builds it as space.factory",
                )
            check_usable(self.factory, type(self.factory).__name__)
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
        check_usable(model, import_path(self.factory))
        check_new(model, import_path(self.factory))
        return model

    def described(self) -> dict[str, object]:
        """Returns the arguments of the constructor; the class of a module, as no file can name the module itself."""
        factory = type(self.factory) if isinstance(self.factory, nn.Module) else self.factory
        return {"factory": factory, "arguments": dict(self.arguments)}

    def resized(self, sizes: Mapping[str, Any]) -> "Custom":
        """Returns the same space with other arguments. Only `build` checks whether the factory takes the arguments."""
        return replace(self, arguments={**self.arguments, **sizes})


# The modules that factories have returned, as long as they exist; and those of them that a warning has named.
_RETURNED: "WeakSet[nn.Module]" = WeakSet()
_SAID: "WeakSet[nn.Module]" = WeakSet()


def check_new(model: nn.Module, name: str) -> None:
    """Raises SpaceError for a model, or choices in it, that an earlier call has returned: deriving a network replaces
    choices in place. Prints a warning of other modules with parameters that learn. name: of the factory."""
    old = [(path, module) for path, module in model.named_modules() if module in _RETURNED]
    for path, module in old:
        if module is model or isinstance(module, Choice):
            raise SpaceError(
                f"space.factory {name} returned {f'the choice {path}' if path else 'the model'} that it had returned "
                "before, expected a new one from each call",
                fix="build all modules inside of it, or give the model itself in its place, which is copied",
            )
        learns = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if learns and module not in _SAID and distributed.first():
            print(
                f"warning: the models that space.factory {name} returns share {path} ({type(module).__name__}): "
                "training one of them changes the others; build it inside of the factory, or set requires_grad=False",
                file=sys.stderr,
            )
            _SAID.add(module)
    for module in model.modules():
        _RETURNED.add(module)


def check_usable(model: nn.Module, name: str) -> None:
    """Raises SpaceError for a lazy module, for one of TorchScript, whose parts cannot be put back or copied with what
    they learn, and for one whose `train` does not return it. name: of what made the model."""
    if type(model).train is not nn.Module.train and model.train(model.training) is not model:
        raise SpaceError(
            f"train() of the {type(model).__name__} that space.factory {name} returned does not return the model, as "
            "torch's does",
            fix="end it with `return self`",
        )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise SpaceError(
                f"space.factory {name} returned a TorchScript module{path and f' at {path}'}, expected plain modules",
                fix="give the module as it was before torch.jit.script or torch.jit.trace",
            )
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise SpaceError(
                f"space.factory {name} returned a lazy module, whose {path} has no shape yet",
                fix="give it its sizes, e.g. nn.Linear(16, 10) instead of nn.LazyLinear(10)",
            )
