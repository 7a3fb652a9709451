"""Temporary files where their result will be, as that is where there is room."""

import contextlib
import multiprocessing.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas.storage import atomic

# Where Python, C and C++ libraries and torch's compiler put theirs; the last one is set by torch itself on first use.
VARIABLES = ("TMPDIR", "TEMP", "TMP", "TORCHINDUCTOR_CACHE_DIR")


@contextmanager
def workplace(directory: Path) -> Iterator[Path]:
    """A temporary directory inside of `directory`, which is made if it is not there, and goes again if it stays empty.

    Inside, all temporary files of this process and of those that it starts go there.
    """
    # This one lives as long as the process, and holds sockets, whose paths are not to be long.
    with contextlib.suppress(OSError):
        multiprocessing.util.get_temp_dir()
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    place = atomic.temporary(directory / "work").absolute()
    shutil.rmtree(place, ignore_errors=True)  # of a dead process that had our number
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
