"""Commands and settings as a person can paste them into a shell."""

import re
import shlex
from collections.abc import Sequence

# What neither a shell nor Hydra's grammar has another meaning for.
PLAIN = re.compile(r"[A-Za-z0-9_./@%+:-]*[A-Za-z_/][A-Za-z0-9_./@%+:-]*")
NUMBER = re.compile(r"[+-]?[0-9_.]*[eE][+-]?[0-9_]+")
WORDS = frozenset({"null", "none", "true", "false", "nan", "inf"})  # values of their own, where they are not quoted


def setting(name: str, value: object) -> str:
    """``name=value`` for a command line, the value quoted for Hydra and then for the shell where it has to be."""
    return f"{name}={quoted(hydra_value(str(value)))}"


def choice(name: str, values: Sequence[str]) -> str:
    """``name=[...]`` for a command line: shells look for files by what stands in brackets."""
    return quoted(f"{name}=[{','.join(map(hydra_value, values))}]")


def pasted(command: Sequence[str]) -> str:
    """A command line of one line."""
    return " ".join(map(quoted, command))


def hydra_value(text: str) -> str:
    """The text as Hydra's grammar has to be given it."""
    if PLAIN.fullmatch(text) and text.lower() not in WORDS and not NUMBER.fullmatch(text):
        return text
    # A backslash has a meaning before a quote only; one before ${ keeps it from being an interpolation.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped).replace("${", "\\${")
    return f'"{escaped}"'


def quoted(word: str) -> str:
    """For a shell; of characters that do not show, such as line breaks, in the form that bash and zsh read."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(_escaped(letter) for letter in word) + "'"


def _escaped(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
