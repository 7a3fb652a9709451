"""Writes files that appear under their name only when they are complete, even if the writing is interrupted."""

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

LEFT = re.compile(r"\..+\.\d+\.nas\.tmp")  # the names that `temporary` returns; nobody else uses such names


def temporary(path: Path) -> Path:
    """Returns the name of the temporary file that is renamed to `path` when it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.nas.tmp")


def remove_left(directory: Path) -> None:
    """Removes the temporary files and directories that killed processes left in a directory, and nothing else."""
    for left in directory.iterdir() if directory.is_dir() and not directory.is_symlink() else ():
        if LEFT.fullmatch(left.name):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def write(
    path: Path,
    fill: Callable[[BinaryIO], object],
    *,
    before_rename: Callable[[], object] = lambda: None,
    setting: str = "hydra.run.dir",
) -> None:
    """Lets `fill` write a temporary file beside `path`, flushes it to the disk and renames it to `path`.

    before_rename: called when the temporary file is complete, to put away the old file at `path`. setting: by which a
    user chooses the place.
    Raises OutputError if the directory cannot be written or the disk is full. The old file is then unchanged.
    """
    unfinished = temporary(path)
    try:
        try:
            unfinished.unlink(missing_ok=True)  # left by a killed process of this number, or a link to elsewhere
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
            fix=f"free some space, or set {setting} elsewhere",
        ) from error


def flush_directory(path: Path) -> None:
    """Flushes the names in a directory to the disk. Without this, a crash may lose a rename."""
    if os.name == "nt":  # Windows cannot open directories
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # the file system does not support it
            raise
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Makes a directory inside one that somebody else may have prepared.

    Raises OutputError if a link, or anything else that is not a directory, is in its place.
    """
    refuse_link(path)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be made ({error.strerror})", fix="remove what is there") from error


def refuse_link(path: Path) -> None:
    """Raises OutputError if `path` is a link: files would be written to where the link leads."""
    if path.is_symlink():
        raise OutputError(f"{path} is a link, expected a directory", fix="remove it, or give another directory")


def write_text(path: Path, text: str, *, setting: str = "hydra.run.dir") -> None:
    write(path, lambda stream: stream.write(text.encode()), setting=setting)


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON that people can read and compare. Numbers that are not finite become null."""
    write_text(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
