"""Writes commands and settings in a form that can be pasted into a shell."""

import re
import shlex
from collections.abc import Sequence

# Text that has no special meaning in a shell or in Hydra's grammar.
PLAIN = re.compile(r"[A-Za-z0-9_./@%+:-]*[A-Za-z_/][A-Za-z0-9_./@%+:-]*")
NUMBER = re.compile(r"[+-]?[0-9_.]*[eE][+-]?[0-9_]+")
WORDS = frozenset({"null", "none", "true", "false", "nan", "inf"})  # special values if they are not quoted


def setting(name: str, value: object) -> str:
    """Returns ``name=value`` for a command line. The value is quoted for Hydra and for the shell where necessary."""
    return f"{name}={quoted(hydra_value(str(value)))}"


def choice(name: str, values: Sequence[str]) -> str:
    """Returns ``name=[...]`` for a command line, quoted because shells expand brackets to file names."""
    return quoted(f"{name}=[{','.join(map(hydra_value, values))}]")


def pasted(command: Sequence[str]) -> str:
    """Returns a command as one line for a shell."""
    return " ".join(map(quoted, command))


def hydra_value(text: str) -> str:
    """Returns the text, quoted for Hydra's grammar where necessary."""
    if PLAIN.fullmatch(text) and text.lower() not in WORDS and not NUMBER.fullmatch(text):
        return text
    # A backslash has a meaning only before a quote, and before ${, where it prevents an interpolation.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped).replace("${", "\\${")
    return f'"{escaped}"'


def quoted(word: str) -> str:
    """Returns a word quoted for a shell. Words with invisible characters, such as line breaks, work in bash and zsh."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(_escaped(letter) for letter in word) + "'"


def _escaped(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
