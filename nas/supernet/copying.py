"""Copies modules, also those that hold results of their last forward pass, or functions that use parts of them."""

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn

from nas.errors import SpaceError, described
from nas.supernet.unregistered import DEEPEST, PLAIN, held_plainly

Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module) -> Module:
    """Returns a copy of the module with its own weights.

    copy.deepcopy alone fails for a module that keeps a tensor with a history, like an attention map, or the weight of
    torch.nn.utils.weight_norm. The copy gets such a tensor without its history. copy.deepcopy also shares functions: a
    hook or an attribute like ``lambda x: self.layer(x)`` would run the layer of the original. The copy gets functions
    that use its own parts. Of parameters, copy.deepcopy leaves out attributes and hooks on their gradients. The copy
    shares modules of Python, as in ``self.np = numpy``. Raises SpaceError if the module holds what cannot be copied.
    """
    held = (one for _, _, one in held_plainly(module, (Tensor, ModuleType)))
    memo: dict[int, Any] = {
        id(one): one.detach().clone() if isinstance(one, Tensor) else one
        for one in held
        if not isinstance(one, Tensor) or not one.is_leaf
    }
    functions = functions_of(module)
    for one in functions:
        cells = tuple(memo.setdefault(id(cell), cell if plain(cell) else CellType()) for cell in one.__closure__ or ())
        memo[id(one)] = FunctionType(one.__code__, one.__globals__, one.__name__, None, cells)
    known = dict(memo)
    try:
        made = copy.deepcopy(module, memo)
        fill_functions(functions, memo)
        for parameter in module.parameters():
            if (other := memo.get(id(parameter))) is None:  # of a module that copies itself in another way
                continue
            vars(other).update(
                {name: copy.deepcopy(it, memo) for name, it in vars(parameter).items() if not hasattr(other, name)}
            )
            hook_gradients(other, *copy.deepcopy(gradient_hooks(parameter), memo))
    except Exception as error:  # of any object's own code
        raise SpaceError(
            f"{uncopied(module, known)} of the {type(module).__name__} cannot be copied ({described(error)})",
            fix="let it hold what copy.deepcopy can copy, and tensors as buffers or by torch.nn.utils.parametrizations",
        ) from error
    return made


def fill_functions(functions: Iterable[FunctionType], memo: dict[int, Any]) -> None:
    """Gives the copies of functions the variables, the defaults and the attributes that the functions have."""

    def own(value: Any) -> Any:
        return copy.deepcopy(value, memo) if any(id(one) in memo for one in members(value)) else value

    for one in functions:
        function = own(one)
        for cell, before in zip(function.__closure__ or (), one.__closure__ or (), strict=True):
            if cell is not before:
                cell.cell_contents = own(before.cell_contents)
        function.__defaults__ = one.__defaults__ and tuple(map(own, one.__defaults__))
        function.__kwdefaults__ = one.__kwdefaults__ and {name: own(it) for name, it in one.__kwdefaults__.items()}
        function.__dict__.update({name: own(it) for name, it in one.__dict__.items()})


def uncopied(module: nn.Module, known: dict[int, Any]) -> str:
    """Returns the place of the first attribute that cannot be copied, for a message. known: id -> copy."""
    for path, part in module.named_modules():
        places = {name: value for name, value in vars(part).items() if name != "_modules"}
        for name, parameter in part.named_parameters(recurse=False):
            places |= {f"{name}.{attribute}": value for attribute, value in vars(parameter).items()}
            places[f"{name}'s gradient hook"] = gradient_hooks(parameter)
        for name, value in places.items():
            try:
                copy.deepcopy(value, dict(known))
            except Exception:
                return ".".join(filter(None, (path, name)))
    return "a part"


def gradient_hooks(parameter: Tensor) -> tuple[list[Any], list[Any]]:
    """Returns the hooks that change the gradient of a parameter, and those that run once it is accumulated."""
    accumulated: Any = parameter._post_accumulate_grad_hooks
    return list((parameter._backward_hooks or {}).values()), list((accumulated or {}).values())


def hook_gradients(parameter: Tensor, changing: Iterable[Any], accumulated: Iterable[Any]) -> None:
    learns = parameter.requires_grad
    for register, hooks in (
        (parameter.register_hook, changing),
        (parameter.register_post_accumulate_grad_hook, accumulated),
    ):
        for hook in hooks:
            parameter.requires_grad_()  # torch asks for it; the parameter may have been frozen since
            register(hook)
    parameter.requires_grad_(learns)


def plain(cell: CellType) -> bool:
    """Whether a variable of a function is empty or a number, a text, ..., which a copy of the function shares."""
    return cell == CellType() or type(cell.cell_contents) in PLAIN


def functions_of(module: nn.Module) -> list[FunctionType]:
    """Returns the functions in attributes and hooks of a module, and in other such functions, that use parts of it."""
    parts = {id(part) for part in module.modules()}
    held: dict[FunctionType, list[Any]] = {}
    waiting: list[Any] = []
    for part in module.modules():
        inside = (*vars(part).values(), *part._parameters.values(), *part._buffers.values())
        parts |= {id(value) for value in inside if type(value) not in PLAIN}
        waiting += vars(part).values()
    waiting += [hooks for parameter in module.parameters() for hooks in gradient_hooks(parameter)]
    while waiting:
        for one in members(waiting.pop()):
            if isinstance(one, FunctionType) and one not in held:
                cells = [cell.cell_contents for cell in one.__closure__ or () if not plain(cell)]
                values = (*cells, *(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values())
                held[one] = [inner for value in values for inner in members(value)]
                waiting += values
    found: list[FunctionType] = []
    while more := [one for one in held.keys() - set(found) if any(id(inner) in parts for inner in held[one])]:
        found += more
        parts |= {id(one) for one in more}
    return found


def members(value: Any, depth: int = DEEPEST) -> Iterator[Any]:
    """Yields a value and what is in it, if it is a container, a method or a functools.partial."""
    yield value
    held: Iterable[Any] = ()
    if isinstance(value, MethodType):
        held = (value.__self__,)
    elif isinstance(value, functools.partial):
        held = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, Mapping):
        held = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        held = value
    for one in held if depth else ():
        if type(one) not in PLAIN:
            yield from members(one, depth - 1)
