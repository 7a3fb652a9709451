"""Constructor calls: terms that make a module again, with the values of their arguments left open for comparison."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas.formats.source.unsupported import UnsupportedError

# Arguments that torch repeats for each dimension of an image, and that people write once.
SPREAD = ("kernel_size", "stride", "padding", "dilation", "output_padding")
MISSING = inspect.Parameter.empty


@dataclass(frozen=True)
class Literal:
    """The value of an argument. It is not written if it equals `default`."""

    name: str
    value: Any
    default: Any = MISSING


@dataclass(frozen=True)
class Name:
    """A parameter of the written class, in place of a literal."""

    name: str


@dataclass(frozen=True)
class Call:
    """A call of a function or class.

    arguments: (keyword, or None for a positional argument, value).
    """

    function: str
    arguments: "tuple[tuple[str | None, Term], ...]"


@dataclass(frozen=True)
class Items:
    """A list of modules, or a dict of them by name."""

    items: "tuple[Term, ...]"
    names: tuple[str, ...] | None = None


Term = Literal | Name | Call | Items


def layer(module: nn.Module) -> Call:
    """Returns the call that makes a layer of torch.nn like this one.

    Raises UnsupportedError if its attributes do not give the arguments of its constructor.
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
        raise UnsupportedError(f"nn.{kind.__name__} does not have all arguments of its constructor as attributes")
    return Call(f"nn.{kind.__name__}", tuple(arguments))


def shapes(module: nn.Module) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}


def empty(name: str, tensor: Tensor) -> Call:
    """Returns the call that makes a tensor of the same shape, for weights to be loaded into."""
    size = Literal(f"{name}_size", tuple(tensor.shape))
    call = Call("torch.empty", ((None, size), ("dtype", Literal("dtype", tensor.dtype, torch.float32))))
    if not isinstance(tensor, nn.Parameter):
        return call
    return Call("nn.Parameter", ((None, call), ("requires_grad", Literal("requires_grad", tensor.requires_grad, True))))


def literals(term: Term) -> Iterator[Literal]:
    """Yields the literals in the order in which they are written."""
    if isinstance(term, Literal):
        yield term
    elif isinstance(term, Call):
        for _, argument in term.arguments:
            yield from literals(argument)
    elif isinstance(term, Items):
        for item in term.items:
            yield from literals(item)


def shape(term: Term) -> Any:
    """Returns the term without the values of its literals. Two terms of one shape differ only in these values."""
    if isinstance(term, Literal):
        return (term.name, term.default is MISSING)
    if isinstance(term, Call):
        return (term.function, tuple((keyword, shape(argument)) for keyword, argument in term.arguments))
    if isinstance(term, Items):
        return (term.names, tuple(map(shape, term.items)))
    return term


def filled(term: Term, values: Iterator[Term]) -> Term:
    """Returns the term with its literals replaced by `values`, in order."""
    if isinstance(term, Literal):
        return next(values)
    if isinstance(term, Call):
        return replace(
            term, arguments=tuple((keyword, filled(argument, values)) for keyword, argument in term.arguments)
        )
    if isinstance(term, Items):
        return replace(term, items=tuple(filled(item, values) for item in term.items))
    return term
