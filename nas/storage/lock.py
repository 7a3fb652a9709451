"""A lock on a directory. The system releases it when the process that holds it ends in any way."""

import errno
import os
import time
from pathlib import Path

from nas.errors import OutputError

# The errors of file systems without locks, e.g. some of networks, containers and object stores.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
TRIES, PAUSE = 10, 0.05  # seconds; a process that removes an empty directory holds its lock for a moment


def take(path: Path) -> int | None:
    """Makes and locks a directory. Returns its descriptor, or None if another process has the lock.

    Raises OutputError if the file system has no locks, and OSError if the directory cannot be made.
    """
    gone: FileNotFoundError | None = None
    for _ in range(TRIES):
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:  # another process has just removed it, or one above it
            gone = error
            continue
        except PermissionError as error:
            if os.name == "nt":  # Windows cannot open directories
                raise without(path, "this system has none for directories") from error
            raise
        gone = None
        try:
            if attempt(descriptor, path) and is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(PAUSE)
    if gone is not None:
        raise gone
    return None


def attempt(descriptor: int, path: Path) -> bool:
    """Returns whether the lock was free and is now taken. Raises OutputError if there are no locks."""
    try:
        import fcntl  # not every system has it
    except ImportError as error:
        raise without(path, "this system has none") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise without(path, error.strerror or str(error)) from error
        if error.errno in HELD:
            return False
        raise
    return True


def is_still(path: Path, descriptor: int) -> bool:
    """Returns whether the open directory still has this path. It may have been removed before the lock was taken."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def without(path: Path, reason: str) -> OutputError:
    return OutputError(
        f"{path} cannot be locked against a second process, as its file system has no locks ({reason})",
        fix="set hydra.run.dir to a directory on another disk, or lock=false if nobody else writes into this one",
    )
