"""Choices that a model reaches in a way that torch does not know: in plain lists, dicts and attributes."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from nas.errors import SpaceError

DEEPEST = 4  # containers in containers that are looked into


def refuse_unregistered(model: nn.Module, kind: type[nn.Module]) -> None:
    """Raises SpaceError, naming the attribute, for a module of `kind` that is held outside of the registered children.

    The search would not know it, or, if it is a registered child as well, freezing would not replace it there.
    """
    registered = set(model.modules())
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules") or attribute.endswith("_hooks"):
                continue
            for place, held in held_modules(value, DEEPEST):
                if isinstance(held, kind) or (
                    held not in registered and any(isinstance(part, kind) for part in held.modules())
                ):
                    where = ".".join(filter(None, (path, attribute))) + place
                    raise SpaceError(
                        f"a Choice is held at {where}, outside of the registered children of {type(module).__name__}, "
                        "where deriving the network cannot replace it",
                        fix="hold it in an nn.ModuleList, nn.ModuleDict or attribute of its own, and only there",
                    )


def held_modules(value: Any, depth: int) -> Iterator[tuple[str, nn.Module]]:
    """Modules in a value, with their places in it, e.g. ``[0]['head']``."""
    if isinstance(value, nn.Module):
        yield "", value
    elif depth and isinstance(value, Mapping):
        for key, one in value.items():
            yield from ((f"[{key!r}]{place}", module) for place, module in held_modules(one, depth - 1))
    elif depth and isinstance(value, list | tuple | set | frozenset):
        for index, one in enumerate(value):
            yield from ((f"[{index}]{place}", module) for place, module in held_modules(one, depth - 1))
