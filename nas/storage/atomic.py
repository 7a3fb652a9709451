"""Files that appear under their name only when they are complete, whatever interrupts the writing."""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from nas.errors import OutputError

LEFT = re.compile(r"\..+\.\d+\.nas\.tmp")  # what `temporary` gives; nobody else calls a file so


def temporary(path: Path) -> Path:
    """The name of what becomes `path` once it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.nas.tmp")


def remove_left(directory: Path) -> None:
    """Remove what processes that were killed have left of their writing in a directory, and nothing else."""
    for left in directory.iterdir() if directory.is_dir() and not directory.is_symlink() else ():
        if LEFT.fullmatch(left.name):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def write(
    path: Path, fill: Callable[[BinaryIO], object], *, before_rename: Callable[[], object] = lambda: None
) -> None:
    """Let `fill` write a temporary file beside `path`, flush it to the disk and rename it to `path`.

    before_rename: called when the temporary file is complete, to put away what is at `path`.
    Raises OutputError when the directory cannot be written or the disk is full; a file that was there is untouched.
    """
    unfinished = temporary(path)
    try:
        try:
            unfinished.unlink(missing_ok=True)  # of a killed process of that number, or a link that leads elsewhere
            with open(unfinished, "xb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            before_rename()
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        flush_directory(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error})",
            fix="free some space, or set hydra.run.dir elsewhere",
        ) from error


def flush_directory(path: Path) -> None:
    """Flush the names in a directory to the disk: without this a rename may be lost in a crash."""
    if os.name == "nt":  # which opens no directories
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # a file system that cannot do that
            raise
    finally:
        os.close(descriptor)


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
