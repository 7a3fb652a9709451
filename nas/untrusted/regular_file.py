"""Opens files that anybody may have written: regular files of bounded size, and nothing that blocks or has no end."""

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
SPARSE = 2**26  # bytes from which a file must not be mostly holes


def opened(path: str | Path, *, limit: int | None = None) -> BufferedReader:
    """The file, open for reading in binary mode.

    limit: the largest size in bytes; None for any, of a file that is not mostly holes.
    Raises OSError, whose strerror says why: a FIFO, a socket, a device, a directory, a file that is too large.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer. Of a regular file it changes nothing.
    descriptor = os.open(path, FLAGS)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"{kind(found.st_mode)}, expected a regular file", str(path))
        if limit is not None and found.st_size > limit:
            raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, expected at most {limit}", str(path))
        # A terabyte of holes takes no place on the disk, and all of the memory. File systems that compress save less.
        if found.st_size > SPARSE and getattr(found, "st_blocks", found.st_size) * 512 < found.st_size / 8:
            raise OSError(errno.EFBIG, "it is mostly holes", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read(path: str | Path, *, limit: int | None = None) -> bytes:
    """The whole content. Raises OSError as `opened` does, and for a file that grows past `limit` while it is read."""
    with opened(path, limit=limit) as stream:
        content = stream.read() if limit is None else stream.read(limit + 1)
    if limit is not None and len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return content


def kind(mode: int) -> str:
    """What a file is, in words."""
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
