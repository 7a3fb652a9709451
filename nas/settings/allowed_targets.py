"""Which import paths may be built: those in `names`, and those that the caller or the command line allows.

A file can never extend the list.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from nas.errors import ConfigError, described
from nas.runtime.user_functions import import_path
from nas.settings.dotted import among
from nas.settings.names import TARGETS

# A package (my_package), the full path of one object (my_package.models.my_model), or in Python the object itself.
Allowed = Sequence[str | Callable[..., Any]]


def allowed(config: Any) -> list[str]:
    """Returns what a command line allows: ``allow_targets``, and the packages of the factories that it names.

    The factories of a resumed run are not allowed here, see `nas.cli.resume.resumed`.
    """
    from omegaconf import OmegaConf

    if OmegaConf.select(config, "resume") is not None:
        return list(config.allow_targets)
    return trusted_by(config)


def trusted_by(config: Any) -> list[str]:
    from omegaconf import OmegaConf

    factories = (OmegaConf.select(config, f"{group}.factory") for group in ("space", "data", "teacher"))
    return [*config.allow_targets, *(str(path).partition(".")[0] for path in factories if path is not None)]


def check_target(target: Any, allow: Allowed = ()) -> Callable[..., Any]:
    """Returns the object that a ``_target_`` names. Raises ConfigError unless it is in `nas.settings.names` or allowed.

    The name alone is not enough: ``my_package.os.remove`` begins with ``my_package``. The object that is found must
    also say that it is defined in the package.
    """
    for one in allow:
        if not isinstance(one, str) and import_path(one) == target:
            return one
    if isinstance(target, str) and target in TARGETS:
        return located(target)
    prefixes = [one for one in allow if isinstance(one, str)]
    if not isinstance(target, str) or not among(target, prefixes):
        last = str(target).rpartition(".")[2].casefold()
        close = [one for one in TARGETS if one.rpartition(".")[2].casefold() == last and str(target) != one]
        raise ConfigError(
            f"_target_ {target!r} is none of the options that ship, and outside of the packages that may be built "
            f"({', '.join(prefixes) or 'none'})",
            fix=f"did you mean {close[0]}?" if close else "if you trust it, add its package: allow_targets=[package]",
        )
    found = located(target)
    if not callable(found):
        raise ConfigError(
            f"_target_ {target!r} is a {type(found).__name__}, expected a function or class",
            fix="add the name of a function or class, as in package.module.function",
        )
    home = getattr(found, "__module__", None)
    # One object that is allowed by its full path may be defined in another module of its package.
    homes = [one.partition(".")[0] if one == target else one for one in prefixes]
    if not isinstance(home, str) or not among(home, homes):
        raise ConfigError(
            f"_target_ {target!r} leads to {home or 'something'}, outside of the packages that may be built "
            f"({', '.join(prefixes)})",
            fix="name the object by the package that defines it, and allow that: allow_targets=[package]",
        )
    return found


def located(path: str) -> Any:
    """Returns the object at an import path that is listed or allowed. Raises ConfigError if there is none."""
    names = path.split(".")
    try:
        if not all(names):
            raise ModuleNotFoundError(f"No module named {path!r}")
        found = importlib.import_module(names[0])
        for position, name in enumerate(names[1:], start=1):
            if not hasattr(found, name):
                importlib.import_module(".".join(names[: position + 1]))
            found = getattr(found, name)
        return found
    except Exception as error:  # importing a user's package runs its code, which may raise any error
        raise ConfigError(
            f"_target_ {path!r} does not exist, or cannot be imported ({described(error)})",
            fix="correct the name; your own package has to be installed, or in the directory the command is started in",
        ) from error
