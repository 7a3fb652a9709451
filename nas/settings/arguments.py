"""Translates settings of the command line to arguments of Python, so that errors name what the user wrote."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas.errors import ConfigError, NasError

STAGES = ("search", "retrain")
# Pattern of a setting -> what it is called in Python.
NAMES = (
    (r"'?\bmay_change=\[([^\]]*)\]'?", lambda found: f"may_change={[plain(name) for name in found[1].split(',')]}"),
    (r"\ballow_targets=\[([^\]]*)\]", lambda found: f"allow={[plain(name) for name in found[1].split(',')]}"),
    (r"\bresume=(?!True)(['\"]?)([^\s;'\"]+)\1", r'resume="\2"'),
    (r"\bhydra\.run\.dir\b", "directory"),
    (r"\b(?:optim|policy)@(?:retrain\.)?(weight_optim|arch_optim|optim|policy)\b", r"\1"),
    (r"\b(?:search|retrain)\.(?!\w+\.(?:pt|json))(?=[a-z_]+\b)", ""),
    (r"\bruntime\.device\b", "device"),
    (r"\bspace\.factory\b", "build_model"),
    (r"\bdata\.(classes|augment|image_size)\b", r"\1"),
    (r"\bset data\.root to\b", "give"),
    (r"\bset e\.g\. cap\.(\w+)=([\d.]+)", r'give e.g. cap={"\1": \2}'),
    (r"\bdata\.root\b", "the folder"),
    (r"=null\b", "=None"),
    (r"=(true|false)\b", lambda found: f"={found[1].title()}"),
    (r"; --debug shows where it stopped| in config\.yaml(?=, or allow)", ""),
)


@contextmanager
def named_as_arguments() -> Iterator[None]:
    """Errors of this project that are raised inside name arguments of Python instead of settings."""
    try:
        yield
    except NasError as error:
        error.problem, error.fix = as_arguments(error.problem), as_arguments(error.fix)
        error.args = (f"{error.problem}; {error.fix}",)
        raise


def as_arguments(text: str) -> str:
    """A sentence for a command line as one for Python."""
    for pattern, name in NAMES:
        text = re.sub(pattern, name, text)
    return text


def path_of(given: Any, name: str) -> Path:
    """A path that a person gave, with ~ as the home directory. name: what it is called.

    Raises ConfigError for what is none, and for an empty text, which would be the working directory.
    """
    try:
        if given != "":
            return Path(given).expanduser()
    except (TypeError, RuntimeError):  # RuntimeError: nobody has the name behind the ~
        pass
    got = repr(str(given)) if isinstance(given, str | Path) else f"a {type(given).__name__}"
    raise ConfigError(f"{name} is {got}, expected a path", fix="give it as a text or a pathlib.Path")


def list_of(given: Any, name: str) -> list[Any]:
    """Raises ConfigError for a text, whose letters are not meant, and for what is no list."""
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        return list(given)
    raise ConfigError(f"{name} is a {type(given).__name__}, expected a list", fix=f"give {name}=[{given!r:.80}]")


def plain(name: str) -> str:
    return re.sub(rf"^(?:{'|'.join(STAGES)})\.", "", name.strip("\"' "))


def settings_of(arguments: Sequence[str]) -> tuple[str, ...]:
    """The settings that arguments may be."""
    return tuple(setting for name in arguments for setting in (name, *(f"{stage}.{name}" for stage in STAGES)))
