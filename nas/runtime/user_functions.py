"""Calls the user's own factories: functions and classes that build a model or a data set."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nas.errors import ConfigError

Factory = Callable[..., Any]
Made = TypeVar("Made")


def import_path(factory: Factory) -> str:
    """The import path of a factory, for messages and results."""
    function = factory.func if isinstance(factory, functools.partial) else factory
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def plain_partial(function: Callable[..., Made]) -> Callable[..., Made]:
    """Converts Hydra's partial object (``_partial_: true``) to a functools.partial. Returns any other value unchanged.

    The partial of newer Hydra releases (1.3.8) checks its target at every call, which takes as long as building a
    candidate, and a supernet has hundreds. `nas.settings.allowed_targets.check_target` and Hydra have already checked
    the target when the configuration was built.
    """
    if isinstance(function, functools.partial) and type(function).__module__.startswith("hydra."):
        return functools.partial(function.func, *function.args, **function.keywords)
    return function


def call(
    factory: Factory, arguments: Mapping[str, Any], *, offered: Mapping[str, Callable[[], Any]], setting: str
) -> Any:
    """Calls the factory with its arguments and returns the result.

    offered: name -> function that returns a value. The factory gets each offered value that its signature names and
    `arguments` does not set; only these values are computed. setting: the configuration group of the factory, e.g.
    ``space``, for messages.
    Raises ConfigError if the factory does not take the arguments. Errors of the factory itself pass through.
    """
    if not callable(factory):
        raise ConfigError(
            f"{setting}.factory is {factory!r}, expected the import path of a function or class",
            fix=f"set {setting}.factory=my_package.my_function",
        )
    if not isinstance(arguments, Mapping):
        raise ConfigError(
            f"{setting}.arguments is {arguments!r}, expected names with values",
            fix=f"set e.g. {setting}.arguments.width=16",
        )
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some builtins have no signature
        return factory(**arguments)
    asked = {key: value() for key, value in offered.items() if key in signature.parameters and key not in arguments}
    try:
        signature.bind(**asked, **arguments)
    except TypeError as error:
        given = ", ".join({**asked, **arguments}) or "none"
        also = f"; the factory also gets {', '.join(offered)} if its signature names them" if offered else ""
        raise ConfigError(
            f"{setting}.factory {import_path(factory)}{signature} was given the arguments {given}: {error}",
            fix=f"correct {setting}.arguments{also}",
        ) from error
    return factory(**asked, **arguments)
