"""Opens untrusted files. Accepts regular files of bounded size only, which neither block nor are endless."""

import errno
import functools
import operator
import os
import stat
from io import BufferedReader
from pathlib import Path

# Windows lacks all of these but O_BINARY, which only it has.
FLAGS = functools.reduce(
    operator.or_, (getattr(os, name, 0) for name in ("O_RDONLY", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))
)
SPARSE = 2**26  # bytes; a larger file must not be mostly holes


def opened(path: str | Path, *, limit: int | None = None) -> BufferedReader:
    """Opens the file for reading in binary mode.

    limit: the largest size in bytes, or None for no limit. A file that is mostly holes is refused in both cases.
    Raises OSError for a FIFO, a socket, a device, a directory or a file that is too large; strerror says which.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer. The flag has no effect on a regular file.
    descriptor = os.open(path, FLAGS)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"{kind(found.st_mode)}, expected a regular file", str(path))
        if limit is not None and found.st_size > limit:
            raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, expected at most {limit}", str(path))
        # A terabyte of holes takes no disk space, but fills the memory. Compressing file systems save less than this.
        if found.st_size > SPARSE and getattr(found, "st_blocks", found.st_size) * 512 < found.st_size / 8:
            raise OSError(errno.EFBIG, "it is mostly holes", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read(path: str | Path, *, limit: int | None = None) -> bytes:
    """Returns the whole content. Raises OSError like `opened`, and if the file grows past `limit` during the read."""
    with opened(path, limit=limit) as stream:
        content = stream.read() if limit is None else stream.read(limit + 1)
    if limit is not None and len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return content


def kind(mode: int) -> str:
    """The type of a file, for error messages. mode: from os.stat."""
    for test, name in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return name
    return "a file of another kind"
