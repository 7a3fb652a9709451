"""Makes objects from plain descriptions, and descriptions of objects.

The checks and the construction read the same dicts and lists, in which nothing is left to resolve.
"""

import dataclasses
import functools
import inspect
from numbers import Integral, Real
from typing import Any

from nas.errors import ConfigError, NasError
from nas.runtime.user_functions import import_path
from nas.settings.allowed_targets import Allowed, check_target
from nas.settings.names import NAME, PARTIAL, TARGET, TARGETS, to_names, to_targets
from nas.settings.signature_check import typed
from nas.untrusted import plain_data


def built(plain: Any, group: str, *, allow: Allowed = (), source: object = "the file") -> Any:
    """Returns the object that a description `plain` from `described` stands for. The description may come from anybody.

    group: what the object must be: a group of `names.TABLE`, e.g. ``space``. allow: what may be used beside the table:
    packages, full import paths, or the functions and classes themselves. source: for messages.
    Raises ConfigError for anything else, and for arguments that do not fit.
    """
    try:
        plain_data.check(plain)
    except plain_data.NotPlainError as error:
        raise ConfigError(
            f"the {group} in {source} is not a plain description: {error}", fix="write it anew"
        ) from error
    if not isinstance(plain, dict) or NAME not in plain:
        raise ConfigError(
            f"the {group} in {source} has no {NAME}: it was written by release 0.1.0, or is not of this project",
            fix="use it with release 0.1.0, or train the network anew with this one",
        )
    return construct(to_targets(plain, group, source=source, setting=group), allow=allow, where=group)


def described(thing: Any) -> Any:
    """Returns plain data from which `built` makes an equal object.

    The object may be anything in the table, a partial of it, or a user's own function or class, which is recorded by
    its import path. Raises ConfigError for other objects.
    """
    plain = as_target(thing)
    group, _ = TARGETS.get(plain.get(TARGET, ""), ("", "")) if isinstance(plain, dict) else ("", "")
    return to_names(plain, group)


def callable_itself(thing: Any) -> bool:
    return inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, functools.partial)


def as_target(thing: Any) -> Any:
    """Returns an object as a plain configuration with targets."""
    if thing is None or isinstance(thing, str | bool):
        return thing
    if isinstance(thing, Real):  # perhaps of NumPy, which no file can hold
        return int(thing) if isinstance(thing, Integral) else float(thing)
    if isinstance(thing, list | tuple):
        return [as_target(one) for one in thing]
    if callable_itself(thing):
        arguments = thing.keywords if isinstance(thing, functools.partial) else {}
        if getattr(thing, "args", ()):
            raise ConfigError(
                f"a partial of {import_path(thing)} has positional arguments, which cannot be recorded",
                fix="give all of its arguments by name",
            )
        return {TARGET: public_path(thing), PARTIAL: True, **as_targets(arguments)}
    path = public_path(type(thing))
    if path in TARGETS or dataclasses.is_dataclass(thing):
        return {TARGET: path, **as_targets(arguments_of(thing))}
    if isinstance(thing, dict) or hasattr(thing, "items"):
        return as_targets(thing)
    raise ConfigError(
        f"a {path} cannot be recorded in a file, expected an object of this project, a function or a class",
        fix="give the function that makes it, with functools.partial for its arguments",
    )


def as_targets(arguments: Any) -> dict[str, Any]:
    return {str(name): as_target(value) for name, value in arguments.items()}


def public_path(function: Any) -> str:
    """Returns the import path in the table: nas.spaces.Darts, not nas.spaces.darts.Darts.

    Others keep their own path.
    """
    import torch  # here, because commands start faster without it

    function = function.func if isinstance(function, functools.partial) else function
    for package in (torch.optim, torch.nn, torch.nn.functional):
        name = getattr(function, "__name__", "")
        if getattr(package, name, None) is function and f"{package.__name__}.{name}" in TARGETS:
            return f"{package.__name__}.{name}"
    path = import_path(function)
    parts = path.split(".")
    public = ".".join([*parts[:2], parts[-1]])
    return public if public in TARGETS and parts[0] == "nas" else path


def arguments_of(thing: Any) -> dict[str, Any]:
    """Returns the arguments that an object of this project was made with."""
    if hasattr(thing, "described"):  # its attributes are not its arguments
        return dict(thing.described())
    if dataclasses.is_dataclass(thing):
        return {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.init}
    names = inspect.signature(type(thing)).parameters
    return {name: getattr(thing, name) for name in names if hasattr(thing, name)}


def construct(plain: Any, *, allow: Allowed = (), where: str = "", arguments: dict[str, Any] | None = None) -> Any:
    """Returns the object of a plain configuration with targets, or a dict of objects for a group of configurations.

    arguments: passed to the result, if that is a partial. where: the setting, for messages.
    Raises ConfigError for a target that is not allowed, does not exist, or does not take its arguments.
    """
    plain = spelt_out(plain)
    check_targets(plain, allow)  # before anything is called
    made = made_of(typed(plain, where=where), allow)
    return called(made, arguments, plain.get(TARGET), "refuses its arguments") if arguments else made


def check_targets(node: Any, allow: Allowed) -> None:
    if isinstance(node, dict):
        if TARGET in node:
            check_target(node[TARGET], allow)
        for child in node.values():
            check_targets(child, allow)
    elif isinstance(node, list):
        for child in node:
            check_targets(child, allow)


def made_of(node: Any, allow: Allowed) -> Any:
    if isinstance(node, list):
        return [made_of(child, allow) for child in node]
    if not isinstance(node, dict):
        return node
    values = {key: made_of(child, allow) for key, child in node.items() if key not in (TARGET, PARTIAL)}
    if TARGET not in node:
        return values
    function = check_target(node[TARGET], allow)
    if node.get(PARTIAL):
        return functools.partial(function, **values) if values else function
    return called(function, values, node[TARGET], "cannot be built")


def complete(part: Any, **arguments: Any) -> Any:
    """Calls a class, a function, or a partial of one with the arguments that are left.

    Raises ConfigError, naming it, if it does not take them.
    """
    return called(part, arguments, public_path(part), "refuses its arguments")


def called(function: Any, arguments: dict[str, Any], target: Any, problem: str) -> Any:
    try:
        return function(**arguments)
    except NasError:
        raise
    except Exception as error:  # of a user's own code, or of arguments that are not what it expects
        # An optimiser raises RuntimeError for settings that exclude each other; elsewhere that is a user's bug.
        refusals = (TypeError, ValueError, *([RuntimeError] if "params" in arguments else []))
        if problem == "refuses its arguments" and not isinstance(error, refusals):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{target} {problem}: {reason}",
            fix="correct them in its configuration group, or choose another of its options"
            if problem == "refuses its arguments"
            else "correct the arguments in its configuration group",
        ) from error


def spelt_out(node: Any) -> Any:
    """Returns a plain configuration in which factories that are given by name only are targets."""
    if isinstance(node, dict):
        spelt = {key: spelt_out(child) for key, child in node.items()}
        of_task = ("loss", "metric", "weight") if {"loss", "metric"} <= spelt.keys() else ()
        for name in ("factory", *of_task):
            if isinstance(spelt.get(name), str):
                spelt[name] = {TARGET: spelt[name], PARTIAL: True}
        return spelt
    return [spelt_out(child) for child in node] if isinstance(node, list) else node


def foreign(plain: Any) -> list[str]:
    """Returns the packages of a user's own classes that a description names. Loading it requires allowing them."""
    return sorted({name.partition(".")[0] for name in foreign_names(plain)})


def private(plain: Any) -> list[str]:
    """Returns the user's own functions and classes in a description that no other program can import: those of a
    script, and those defined inside a function."""
    return sorted(name for name in foreign_names(plain) if name.startswith("__main__.") or "<" in name)


def foreign_names(plain: Any) -> set[str]:
    """Returns the names of the user's own functions and classes in a description."""
    found: set[str] = set()

    def look(node: Any) -> None:
        if isinstance(node, dict):
            name = node.get(TARGET, node.get(NAME))
            if isinstance(name, str) and "." in name and name not in TARGETS:
                found.add(name)
            for child in node.values():
                look(child)
        elif isinstance(node, list):
            for child in node:
                look(child)

    look(spelt_out(plain))
    return found
