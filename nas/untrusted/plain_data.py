"""Reads plain data from untrusted JSON and YAML: dicts, lists, texts and numbers, with limits on size and depth."""

import json
from pathlib import Path
from typing import Any

import yaml

from nas.untrusted import regular_file

DEPTH = 32  # levels of dicts and lists; a configuration has 7
VALUES = 200_000  # in one file; a metadata.json with 10,000 classes has 60,000
COMMAS = 2  # for each value; names may have some too
# Bytes and values of a file in which a run records what it found; the largest table of confusions takes half of both.
RECORD, RECORDED = 64_000_000, 4_000_000
BITS = 64  # bits of the largest integer; Python cannot even print integers of more than 4,300 digits


class NotPlainError(ValueError):
    """The data are too large, too deep or of a wrong type. The message is one line and quotes no values."""


def check(value: Any, *, leaves: tuple[type, ...] = (), tuples: bool = False, values: int = VALUES) -> Any:
    """Returns the value. Raises NotPlainError unless the value is a small tree of plain values.

    A shared part counts once for each reference. So a few bytes of nested references are refused, and so is a value
    that contains itself. leaves: more allowed types. tuples: whether tuples are allowed. values: the largest number of
    values.
    """
    allowed = {str, int, float, bool, type(None), *leaves}
    left = values

    def walk(node: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise NotPlainError(f"it has more than {values} values")
        if depth > DEPTH:
            raise NotPlainError(f"it is nested more than {DEPTH} levels deep")
        kind = type(node)
        if isinstance(node, dict):
            for key, child in node.items():
                if type(key) not in (str, int) or (type(key) is int and key.bit_length() > BITS):
                    raise NotPlainError("it has keys that are no texts")
                walk(child, depth + 1)
        elif kind is list or (tuples and kind is tuple):
            for child in node:
                walk(child, depth + 1)
        elif kind not in allowed:
            raise NotPlainError(f"it has a value of type {kind.__name__[:60]}")
        elif kind is int and node.bit_length() > BITS:
            raise NotPlainError(f"it has an integer of more than {BITS} bits")

    walk(value, 0)
    return value


def from_json(text: str | bytes, *, values: int = VALUES) -> Any:
    """Reads JSON. Raises ValueError, with a message of one line, if the text is not plain JSON. values: see `check`."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        # Before anything is made of it: millions of empty lists, or of numbers, take gigabytes, and seconds.
        if text.count("[") + text.count("{") > values or text.count(",") > COMMAS * values:
            raise NotPlainError(f"it has more than {values} values")
        return check(json.loads(text), values=values)
    except RecursionError as error:
        raise NotPlainError("it is nested too deeply") from error


def dict_in(path: Path) -> dict[str, Any]:
    """Returns the dict in a JSON file that a run wrote; {} if there is none, or something else."""
    try:
        found = from_json(regular_file.read(path, limit=RECORD), values=RECORDED)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# libyaml's parser is ten times as fast as Python's. This saves seconds for the largest files.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def from_yaml(text: str | bytes) -> Any:
    """Reads YAML without aliases, anchors and tags. Raises ValueError, with a message of one line, otherwise."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise NotPlainError("it has aliases")
            if getattr(event, "tag", None) is not None:
                raise NotPlainError("it has tags")
            # A number in base 60, 1:59:59 and so on, is computed in a time that grows with the square of its length.
            if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and sexagesimal(event.value):
                raise NotPlainError("it has a number of too many digits")
            # Before anything is made of it, as that is done by recursion.
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise NotPlainError(f"it is nested more than {DEPTH} levels deep")
        return check(_loaded(text))
    except yaml.YAMLError as error:
        raise NotPlainError(f"it is not YAML ({' '.join(str(error).split()):.200})") from error
    except (TypeError, AttributeError, RecursionError, OverflowError) as error:  # e.g. from keys that cannot be hashed
        raise NotPlainError(f"it cannot be read as YAML ({type(error).__name__})") from error


def sexagesimal(text: str) -> bool:
    """Whether a plain text may be a number in base 60 that nobody writes."""
    return text.count(":") > DEPTH and set(text) <= set("0123456789:.+-_")


def _loaded(text: str | bytes) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
