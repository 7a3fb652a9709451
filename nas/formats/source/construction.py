"""Constructor calls: how a module is made again, with the values of its arguments left open to be compared."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas.formats.source.unsupported import UnsupportedError

# What torch spreads over the dimensions of an image, and people write once.
SPREAD = ("kernel_size", "stride", "padding", "dilation", "output_padding")
MISSING = inspect.Parameter.empty


@dataclass(frozen=True)
class Literal:
    """A value of an argument. default: what it need not be written for."""

    name: str
    value: Any
    default: Any = MISSING


@dataclass(frozen=True)
class Name:
    """A parameter of the class that is written, in place of a literal."""

    name: str


@dataclass(frozen=True)
class Call:
    """arguments: (keyword or None for a positional one, what is passed)."""

    function: str
    arguments: "tuple[tuple[str | None, Term], ...]"


@dataclass(frozen=True)
class Items:
    """A list of modules, or a dict of them by name."""

    items: "tuple[Term, ...]"
    names: tuple[str, ...] | None = None


Term = Literal | Name | Call | Items


def layer(module: nn.Module) -> Call:
    """The call that makes a layer of torch.nn like this one.

    Raises UnsupportedError if its attributes do not tell the arguments of its constructor.
    """
    kind = type(module)
    arguments: list[tuple[str | None, Term]] = []
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in ("device", "dtype"):
            continue
        if not hasattr(module, name) or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(module, name)
        if isinstance(value, Tensor) or (value is None and isinstance(parameter.default, bool)):
            value = value is not None  # bias=True becomes a tensor
        if name in SPREAD and isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        keyword = None if parameter.default is MISSING else name
        arguments.append((keyword, Literal(name, value, parameter.default)))
    try:
        positional = [term.value for keyword, term in arguments if keyword is None and isinstance(term, Literal)]
        named = {keyword: term.value for keyword, term in arguments if keyword and isinstance(term, Literal)}
        with torch.device("meta"):
            again = kind(*positional, **named)
    except Exception as error:
        raise UnsupportedError(f"it is not known how nn.{kind.__name__} was made") from error
    if repr(again) != repr(module) or shapes(again) != shapes(module):
        raise UnsupportedError(f"nn.{kind.__name__} does not tell how it was made")
    return Call(f"nn.{kind.__name__}", tuple(arguments))


def shapes(module: nn.Module) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}


def empty(name: str, tensor: Tensor) -> Call:
    """A tensor of the same shape, for weights to be loaded into."""
    size = Literal(f"{name}_size", tuple(tensor.shape))
    call = Call("torch.empty", ((None, size), ("dtype", Literal("dtype", tensor.dtype, torch.float32))))
    if not isinstance(tensor, nn.Parameter):
        return call
    return Call("nn.Parameter", ((None, call), ("requires_grad", Literal("requires_grad", tensor.requires_grad, True))))


def literals(term: Term) -> Iterator[Literal]:
    """In the order in which they are written."""
    if isinstance(term, Literal):
        yield term
    elif isinstance(term, Call):
        for _, argument in term.arguments:
            yield from literals(argument)
    elif isinstance(term, Items):
        for item in term.items:
            yield from literals(item)


def shape(term: Term) -> Any:
    """The term without the values of its literals: two terms of one shape differ in these only."""
    if isinstance(term, Literal):
        return (term.name, term.default is MISSING)
    if isinstance(term, Call):
        return (term.function, tuple((keyword, shape(argument)) for keyword, argument in term.arguments))
    if isinstance(term, Items):
        return (term.names, tuple(map(shape, term.items)))
    return term


def filled(term: Term, values: Iterator[Term]) -> Term:
    """The term with its literals, in their order, replaced."""
    if isinstance(term, Literal):
        return next(values)
    if isinstance(term, Call):
        return replace(
            term, arguments=tuple((keyword, filled(argument, values)) for keyword, argument in term.arguments)
        )
    if isinstance(term, Items):
        return replace(term, items=tuple(filled(item, values) for item in term.items))
    return term
