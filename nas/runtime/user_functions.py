"""Factories: functions and classes of the user's own that build a model or a data set."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nas.errors import ConfigError

Factory = Callable[..., Any]
Made = TypeVar("Made")


def import_path(factory: Factory) -> str:
    """Its import path, for messages and results."""
    function = factory.func if isinstance(factory, functools.partial) else factory
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def plain_partial(function: Callable[..., Made]) -> Callable[..., Made]:
    """What Hydra makes of ``_partial_: true``, as a partial of Python's; anything else as it is.

    That of Hydra's newer releases (1.3.8) asks again at every call what its target may do, which takes as long as to
    build a candidate, of which a supernet has hundreds. What may be named at all was checked when the configuration was
    built, by `nas.settings.allowed_targets.check_target` and by Hydra.
    """
    if isinstance(function, functools.partial) and type(function).__module__.startswith("hydra."):
        return functools.partial(function.func, *function.args, **function.keywords)
    return function


def call(
    factory: Factory, arguments: Mapping[str, Any], *, offered: Mapping[str, Callable[[], Any]], setting: str
) -> Any:
    """What the factory returns for its arguments.

    offered: values that it gets if its signature names them and `arguments` does not; each is a function, for only
    what is asked for has to exist. setting: where it was configured, e.g. ``space``, for messages.
    Raises ConfigError if it does not take the arguments; what it raises itself is passed on.
    """
    if not callable(factory):
        raise ConfigError(
            f"{setting}.factory is {factory!r}, expected the import path of a function or class",
            fix=f"set {setting}.factory=my_package.my_function",
        )
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some builtins have none
        return factory(**arguments)
    asked = {key: value() for key, value in offered.items() if key in signature.parameters and key not in arguments}
    try:
        signature.bind(**asked, **arguments)
    except TypeError as error:
        given = ", ".join({**asked, **arguments}) or "none"
        also = f"; it gets {', '.join(offered)} if its signature names them" if offered else ""
        raise ConfigError(
            f"{setting}.factory {import_path(factory)}{signature} was given the arguments {given}: {error}",
            fix=f"correct {setting}.arguments{also}",
        ) from error
    return factory(**asked, **arguments)
