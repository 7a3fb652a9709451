"""Finds choices and parameters that a model holds in plain lists or dicts, where torch does not register them."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from nas.errors import SpaceError

DEEPEST = 4  # the number of nested containers that are searched
OF_TORCH = ("_parameters", "_buffers", "_modules")
OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # these and its hooks
# Most attributes are of these, or lists of them, as a stride is. Without passing over them first, this would take three
# times as long, and a command walks through a model ten times.
PLAIN = frozenset({bool, int, float, str, type(None)})


def refuse_unregistered(model: nn.Module, kind: type[nn.Module]) -> None:
    """Raises SpaceError, naming the attribute, if the model holds a module of `kind` outside its registered children.

    The search would not find such a module. If the module is also a registered child, freezing would not replace it
    in the attribute.
    """
    registered = set(model.modules())
    for where, module, held in held_plainly(model, nn.Module):
        if isinstance(held, kind) or (
            held not in registered and any(isinstance(part, kind) for part in held.modules())
        ):
            raise SpaceError(
                f"{where} holds a Choice outside of the registered children of {type(module).__name__}, "
                "where deriving the network cannot replace it",
                fix="hold the Choice only in an nn.ModuleList, an nn.ModuleDict or an attribute of the module",
            )


def unregistered_parameters(model: nn.Module) -> Iterator[str]:
    """Yields the places at which a model holds parameters, or modules with parameters, that torch does not register,
    although they require a gradient."""
    known = set(model.parameters())
    for where, _, held in held_plainly(model, (nn.Module, nn.Parameter)):
        parameters = [held] if isinstance(held, nn.Parameter) else held.parameters()
        if any(parameter.requires_grad and parameter not in known for parameter in parameters):
            yield where


def held_plainly(model: nn.Module, kinds: Any) -> Iterator[tuple[str, nn.Module, Any]]:
    """Yields (place, module that holds it, object) for each object of `kinds` outside of torch's registers."""
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            kind = type(value)
            if kind in PLAIN or attribute in OF_EVERY_MODULE:
                continue
            if (kind is tuple or kind is list) and PLAIN.issuperset(map(type, value)):
                continue
            for place, held in held_in(value, kinds, DEEPEST):
                yield ".".join(filter(None, (path, attribute))) + place, module, held


def held_in(value: Any, kinds: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Yields the objects of `kinds` in a value, with their places in it, e.g. ``[0]['head']``."""
    if isinstance(value, kinds):
        yield "", value
    elif depth and isinstance(value, Mapping):
        for key, one in value.items():
            yield from ((f"[{key!r}]{place}", held) for place, held in held_in(one, kinds, depth - 1))
    elif depth and isinstance(value, list | tuple | set | frozenset):
        for index, one in enumerate(value):
            yield from ((f"[{index}]{place}", held) for place, held in held_in(one, kinds, depth - 1))
