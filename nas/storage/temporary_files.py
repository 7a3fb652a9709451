"""Puts temporary files beside their results, because there is room for them."""

import contextlib
import multiprocessing.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas.storage import atomic

# The variables that say where Python, C and C++ libraries and torch's compiler put temporary files. torch itself sets
# the last one on first use.
VARIABLES = ("TMPDIR", "TEMP", "TMP", "TORCHINDUCTOR_CACHE_DIR")


@contextmanager
def workplace(directory: Path) -> Iterator[Path]:
    """Makes a temporary directory inside `directory`, for all temporary files of this process and its child processes.

    Makes `directory` if it does not exist, and then removes it afterwards if it is empty.
    """
    # Made here, outside: this directory lives as long as the process and holds sockets, whose paths must be short.
    with contextlib.suppress(OSError):
        multiprocessing.util.get_temp_dir()
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    place = atomic.temporary(directory / "work").absolute()
    shutil.rmtree(place, ignore_errors=True)  # left by a dead process of the same number
    variables, default = {name: os.environ.get(name) for name in VARIABLES}, tempfile.tempdir
    try:
        place.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(place)
        yield place
    finally:
        tempfile.tempdir = default
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(place, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # not empty
                directory.rmdir()
