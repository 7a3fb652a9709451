"""Decides how the source treats each module of a network: as a layer of torch, a class, or nothing."""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from nas.formats.source.unsupported import UnsupportedError

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Part(Enum):
    LAYER = "one of torch.nn: written as its constructor call"
    CONTAINER = "a list or dict of modules that computes nothing itself, or an nn.Sequential"
    CLASS = "computes tensors from tensors: written as a class"
    HOLDER = "is given or returns something else, or is never called: what it computes goes into its caller"
    NOTHING = "gives back its input, or a constant, and holds no weights: drop-path, say, outside of training"


@dataclass
class Parts:
    """How the source treats each module.

    of: module -> its part. inputs: the names of the arguments of each CLASS; none if it only runs its children one
    after the other, as nn.Sequential does. same: each NOTHING that gives back its first argument as it was.
    """

    of: dict[nn.Module, Part] = field(default_factory=dict)
    inputs: dict[nn.Module, tuple[str, ...]] = field(default_factory=dict)
    same: set[nn.Module] = field(default_factory=set)


@dataclass
class _Calls:
    """The calls of a module when the network ran.

    names: of its arguments; None for a call with other arguments than tensors.
    """

    names: set[tuple[str, ...] | None] = field(default_factory=set)
    trivial: bool = True  # returned its input, or something without tensors
    same: bool = True  # returned its first argument, and changed no argument in place
    versions: list[int] = field(default_factory=list)  # of the arguments, before the call


@torch.no_grad()
def parts(network: nn.Module, examples: tuple[Tensor, ...]) -> Parts:
    """Runs the network, in eval mode, on a batch, and records what its modules are given and return.

    Raises UnsupportedError for modules with hooks, and for modules that are called with different arguments at
    different places.
    """
    seen: dict[nn.Module, _Calls] = {module: _Calls() for module in network.modules()}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[module].versions = versions(args, kwargs)

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls = seen[module]
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        named = all(isinstance(value, Tensor) for value in bound.values())
        calls.names.add(tuple(bound) if named else None)
        given = [*args, *kwargs.values()]
        returned = list(tensors(output))
        calls.same &= bool(args) and output is args[0] and versions(args, kwargs) == calls.versions
        calls.trivial &= not returned or all(any(out is value for value in given) for out in returned)

    for module in seen:
        if module._forward_hooks or module._forward_pre_hooks:
            raise UnsupportedError(f"a {type(module).__name__} has hooks, which no source shows")
    with contextlib.ExitStack() as hooks:
        for module in seen:
            hooks.enter_context(module.register_forward_hook(look, with_kwargs=True))
            hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
        network(*examples)

    found = Parts()
    for module, calls in seen.items():
        found.of[module] = part(module, calls)
        if found.of[module] is Part.NOTHING and calls.same:
            found.same.add(module)
        if found.of[module] is Part.CLASS and not is_sequence(module):
            if len(calls.names) > 1:
                raise UnsupportedError(f"a {type(module).__name__} is called with different arguments")
            names = next(iter(calls.names)) if calls.names else required(module)
            assert names is not None
            found.inputs[module] = names
    if found.of[network] is Part.HOLDER:
        raise UnsupportedError(f"{type(network).__name__} takes or returns something other than tensors")
    return found


def part(module: nn.Module, calls: _Calls) -> Part:
    kind = type(module)
    if kind in CONTAINERS or (isinstance(module, nn.ModuleList | nn.ModuleDict) and not calls.names):
        return Part.CONTAINER
    if getattr(nn, kind.__name__, None) is kind:
        return Part.LAYER
    if is_sequence(module):
        return Part.CLASS
    holds_weights = bool(module.state_dict())
    if calls.trivial and calls.names and not holds_weights:
        return Part.NOTHING
    if None in calls.names:
        return Part.HOLDER
    if not calls.names:
        # Weights that nothing uses, e.g. of a head for training, still need a place to be loaded into.
        weighs = next(module.parameters(recurse=False), None) is not None
        return Part.CLASS if weighs or forwards(module) else Part.NOTHING
    return Part.CLASS


def forwards(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward and bool(module.state_dict())


def is_sequence(module: nn.Module) -> bool:
    """Returns whether a module's class extends nn.Sequential without adding any computation."""
    kind = type(module)
    return isinstance(module, nn.Sequential) and kind is not nn.Sequential and kind.forward is nn.Sequential.forward


def required(module: nn.Module) -> tuple[str, ...]:
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)


def versions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """Returns a number for each tensor that changes whenever the tensor is changed in place."""
    return [tensor._version for tensor in tensors([*args, *kwargs.values()])]


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
