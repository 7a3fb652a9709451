"""Finds objects of some kinds in what a user gives: in attributes, partials, methods, closures and named globals."""

import functools
import inspect
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

DEEPEST = 4  # objects in objects that are searched
LONGEST = 100  # of a list that is searched; longer ones hold data
OF_TORCH = ("_parameters", "_buffers", "_modules")


@runtime_checkable
class Stateful(Protocol):
    """An object with a state, which a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def held(value: Any, kinds: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """Yields (place, object) for each object of `kinds`, e.g. ("loss.weight", ...), once. Does not look into modules
    that are of `kinds` themselves."""
    seen: set[int] = set()

    def inside(value: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
        if depth < 0 or id(value) in seen or isinstance(value, type | Tensor | ModuleType):
            return
        seen.add(id(value))
        if isinstance(value, kinds):
            yield place, value
            if isinstance(value, nn.Module):
                return
        for name, part in parts(value, kinds).items():
            yield from inside(part, f"{place}.{str(name).removeprefix('_')}".strip("."), depth - 1)

    return inside(value, "", DEEPEST)


def parts(value: Any, kinds: tuple[type, ...]) -> Mapping[Any, Any]:
    """Returns name -> part of a value; the name is empty for what only passes a call on."""
    if isinstance(value, nn.Module):
        return {
            ".".join(filter(None, (path, name))): part
            for path, module in value.named_modules()
            for name, part in vars(module).items()
            if name not in OF_TORCH and "_hooks" not in name
        }
    if isinstance(value, functools.partial):
        return {"": value.func, **value.keywords} | dict(enumerate(value.args))
    if inspect.ismethod(value):
        return {"": value.__self__}
    if inspect.isfunction(value):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        found = {name: cell.cell_contents for name, cell in cells if cell != type(cell)()}
        named = {name: value.__globals__.get(name) for name in value.__code__.co_names}
        return found | {name: one for name, one in named.items() if isinstance(one, kinds)}
    if isinstance(value, list | tuple):
        return dict(enumerate(value)) if len(value) <= LONGEST else {}
    if isinstance(value, dict):
        return value if len(value) <= LONGEST else {}
    return getattr(value, "__dict__", {})
