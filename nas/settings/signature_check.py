"""What the signatures of targets say of plain values: a wrong one is told before the target makes something of it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from nas.errors import ConfigError
from nas.settings.allowed_targets import located

# Of plain types: what they are called, and one of them.
PLAIN: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true"),
    int: ("a whole number", "1"),
    float: ("a number", "0.5"),
    str: ("text", "abc"),
}
LISTS = (list, tuple, Sequence)


def typed(node: Any, *, where: str) -> Any:
    """A plain configuration, its targets being allowed, with whole numbers as texts where a signature has texts: a
    folder may be called 2024.

    where: the setting that it is. Raises ConfigError for a value that is none of the plain types, or lists of them,
    that a signature has; what it has as anything else is let through.
    """
    if isinstance(node, list):
        return [typed(child, where=f"{where}[{index}]") for index, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    parameters = parameters_of(node.get("_target_"))
    found = {}
    for name, value in node.items():
        setting = f"{where}.{name}" if where else str(name)
        if name in parameters and not (value is None and parameters[name].default is None):
            value = fitting(value, parameters[name].annotation, setting)
        found[name] = typed(value, where=setting)
    return found


def parameters_of(target: Any) -> Mapping[str, inspect.Parameter]:
    """By name; empty where they cannot be told."""
    try:
        found = located(target) if isinstance(target, str) else None
        return signature(found).parameters if callable(found) else {}
    except Exception:  # of code that is not ours: it has no signature, or cannot be imported, which is told elsewhere
        return {}


def signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # of types that are imported for type checkers alone
        return inspect.signature(function)


def fitting(value: Any, annotation: Any, setting: str) -> Any:
    """The value, or the text that a whole number was written as. Raises ConfigError if it is not of the annotation."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    lists = [kind for kind in kinds if get_origin(kind) in LISTS]
    if not all(kind in PLAIN or kind is NoneType or kind in lists for kind in kinds):
        return value
    if isinstance(value, dict) and "_target_" in value:  # of which something is built that may fit
        return value
    if isinstance(value, list) and lists:
        members = get_args(lists[0])[:1] or (Any,)
        return [fitting(one, members[0], f"{setting}[{index}]") for index, one in enumerate(value)]
    if type(value) in kinds or (type(value) is int and float in kinds) or (value is None and NoneType in kinds):
        return value
    if type(value) is int and str in kinds:
        return str(value)
    expected = [PLAIN[kind][0] for kind in kinds if kind in PLAIN]
    expected += ["a list"] * bool(lists) + ["null"] * (NoneType in kinds)
    example = f"[{value or ''}]" if lists else next(PLAIN[kind][1] for kind in kinds if kind in PLAIN)
    raise ConfigError(
        f"{setting} must be {' or '.join(expected)}, got {'null' if value is None else repr(value)}",
        fix=f"set {setting}={example}",
    )
