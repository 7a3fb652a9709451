"""Copies modules, also those that hold results of their last forward pass, or functions that use parts of them."""

import copy
import functools
from collections.abc import Collection, Iterator
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

from nas.supernet.unregistered import DEEPEST, PLAIN, held_in, held_plainly

Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module) -> Module:
    """Returns a copy of the module with its own weights.

    copy.deepcopy alone fails for a module that keeps a tensor with a history, like an attention map, or the weight of
    torch.nn.utils.weight_norm. The copy gets such a tensor without its history. copy.deepcopy also shares functions: a
    hook or an attribute like ``lambda x: self.layer(x)`` would run the layer of the original. The copy gets functions
    that use its own parts.
    """
    held = (tensor for _, _, tensor in held_plainly(module, Tensor) if not tensor.is_leaf)
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in held}
    functions = list(dict.fromkeys(functions_of(module)))
    for one in functions:
        cells = tuple(memo.setdefault(id(cell), cell if plain(cell) else CellType()) for cell in one.__closure__ or ())
        memo[id(one)] = FunctionType(one.__code__, one.__globals__, one.__name__, None, cells)
    made = copy.deepcopy(module, memo)

    def own(value: Any) -> Any:
        if isinstance(value, MethodType):
            return MethodType(value.__func__, own(value.__self__))
        return memo.get(id(value), value)

    for one in functions:
        function = own(one)
        for cell, before in zip(function.__closure__ or (), one.__closure__ or (), strict=True):
            if cell is not before:
                cell.cell_contents = own(before.cell_contents)
        function.__defaults__ = one.__defaults__ and tuple(map(own, one.__defaults__))
        function.__kwdefaults__ = one.__kwdefaults__ and {name: own(it) for name, it in one.__kwdefaults__.items()}
        function.__dict__.update({name: own(it) for name, it in one.__dict__.items()})
    return made


def plain(cell: CellType) -> bool:
    """Whether a variable of a function is empty or a number, a text, ..., which a copy of the function shares."""
    return cell == CellType() or type(cell.cell_contents) in PLAIN


def functions_of(module: nn.Module) -> Iterator[FunctionType]:
    """Yields the functions in attributes and hooks of a module, and in other such functions, that use parts of it."""
    parts = {id(part) for part in module.modules()}
    for part in module.modules():
        inside = (*vars(part).values(), *part._parameters.values(), *part._buffers.values())
        parts |= {id(value) for value in inside if type(value) not in PLAIN}
    for part in module.modules():
        for _, function in held_in(vars(part), (FunctionType, functools.partial), DEEPEST):
            yield from using(function, parts, set())


def using(value: Any, parts: Collection[int], seen: set[int]) -> Iterator[FunctionType]:
    """Yields a function if it, or a function that it calls by a variable, uses one of the parts; and those functions.
    parts: their ids."""
    if isinstance(value, functools.partial):
        value = value.func
    if not isinstance(value, FunctionType) or id(value) in seen:
        return
    seen.add(id(value))
    cells = [cell.cell_contents for cell in value.__closure__ or () if not plain(cell)]
    held = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    inner = [function for one in held for function in using(one, parts, seen)]
    if inner or any(id(one.__self__ if isinstance(one, MethodType) else one) in parts for one in held):
        yield value
    yield from inner
