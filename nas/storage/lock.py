"""A lock on a directory, which the system takes back when the process that holds it ends, however it ends."""

import errno
import os
import time
from pathlib import Path

from nas.errors import OutputError

# What file systems say that have no locks, such as some of networks, of containers and of object stores.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
TRIES, PAUSE = 10, 0.05  # whoever removes an empty directory holds its lock for a moment


def take(path: Path) -> int | None:
    """The descriptor of a directory with a lock; None if another process has it. Makes the directory.

    Raises OutputError where there are no locks.
    """
    for _ in range(TRIES):
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # another process has just removed it, or one above it
            continue
        except PermissionError as error:
            if os.name == "nt":  # which opens no directories
                raise without(path, "this system has none for directories") from error
            raise
        try:
            if attempt(descriptor, path) and is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(PAUSE)
    return None


def attempt(descriptor: int, path: Path) -> bool:
    """Whether nobody else has the lock. Raises OutputError where there are none."""
    try:
        import fcntl  # which not every system has
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
    """Whether the directory that is open is the one of this name: not if it was removed before the lock was taken."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def without(path: Path, reason: str) -> OutputError:
    return OutputError(
        f"{path} cannot be locked against a second process, as its file system has no locks ({reason})",
        fix="set hydra.run.dir to a directory on another disk, or lock=false if nobody else writes into this one",
    )
