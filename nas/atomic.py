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
            with open(temporary, "wb") as stream:
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
