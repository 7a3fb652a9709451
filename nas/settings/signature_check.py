"""Checks plain values against the signatures of their targets, before a target is called."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from nas.errors import ConfigError
from nas.settings.allowed_targets import located

# Plain type -> its name in messages, and an example.
PLAIN: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true"),
    int: ("a whole number", "1"),
    float: ("a number", "0.5"),
    str: ("text", "abc"),
}
LISTS = (list, tuple, Sequence)


def typed(node: Any, *, where: str) -> Any:
    """Checks a plain configuration against the signatures of its targets, which must be allowed.

    Returns it with whole numbers as text where a signature has text: a folder may be called 2024. where: the setting,
    for messages. Raises ConfigError for a value that does not fit the plain types, or lists of them, in a signature.
    Values of other types are not checked.
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
    """Returns the parameters of a target by name; none if they are unknown."""
    try:
        found = located(target) if isinstance(target, str) else None
        return signature(found).parameters if callable(found) else {}
    except Exception:  # a user's code may have no signature, or fail to import, which is reported elsewhere
        return {}


def signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # a type may be imported for type checkers only
        return inspect.signature(function)


def fitting(value: Any, annotation: Any, setting: str) -> Any:
    """Returns the value, or a whole number as text. Raises ConfigError if the value does not fit the annotation."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if any(kind in PLAIN for kind in kinds):  # torch's optimisers also take numbers as tensors, which no setting is
        kinds = tuple(kind for kind in kinds if getattr(kind, "__name__", "") != "Tensor")
    lists = [kind for kind in kinds if get_origin(kind) in LISTS]
    if not all(kind in PLAIN or kind is NoneType or kind in lists for kind in kinds):
        return value
    if isinstance(value, dict) and "_target_" in value:  # an object will be built from it, and may fit
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
