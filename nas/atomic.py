"""Files that appear under their name only when they are complete, whatever interrupts the writing."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from nas.errors import OutputError


def write(
    path: Path, fill: Callable[[BinaryIO], object], *, before_rename: Callable[[], object] = lambda: None
) -> None:
    """Let `fill` write a temporary file beside `path`, flush it to the disk and rename it to `path`.

    before_rename: called when the temporary file is complete, to put away what is at `path`.
    Raises OutputError when the directory cannot be written or the disk is full; a file that was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.unlink(
                missing_ok=True
            )  # of a killed process with the same number, or a link that leads elsewhere
            with open(temporary, "xb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            before_rename()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        # Without this the rename itself may be lost in a crash.
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error})",
            fix="free some space, or set hydra.run.dir elsewhere",
        ) from error


def make_directory(path: Path) -> None:
    """Make a directory inside of one that somebody else may have prepared. Raises OutputError for a link, or for
    something that is no directory, in its place."""
    refuse_link(path)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be made ({error.strerror})", fix="remove what is there") from error


def refuse_link(path: Path) -> None:
    """Raises OutputError for a link: what is written into it would go to where the link leads."""
    if path.is_symlink():
        raise OutputError(f"{path} is a link, expected a directory", fix="remove it, or give another directory")


def remove_temporaries(directory: Path) -> None:
    """Remove what killed processes left, here and in the directories here that are no links."""
    for place in (directory, *(one for one in directory.iterdir() if one.is_dir() and not one.is_symlink())):
        for left in place.glob(".*.tmp"):
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write(path, lambda stream: stream.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Indented, so that people can read and diff it. Numbers that are not finite, which JSON has not, become null."""
    write_text(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
