"""Descriptors that a forked process is not to have, such as that of a lock: it would hold the lock on."""

import contextlib
import os

_private: dict[int, tuple[int, int]] = {}  # descriptor -> device and inode of its file
_registered = False


def close_in_children(descriptor: int) -> None:
    """Close it in every process that Python forks from this one from now on, as long as it is of the same file."""
    global _registered
    if not hasattr(os, "register_at_fork"):  # Windows, which has no fork
        return
    if not _registered:  # for good: Python cannot take it back
        os.register_at_fork(after_in_child=_close_all)
        _registered = True
    _private[descriptor] = _file(descriptor)


def _file(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _close_all() -> None:
    for descriptor, file in _private.items():
        with contextlib.suppress(OSError):  # it is closed here, too
            if _file(descriptor) == file:
                os.close(descriptor)
    _private.clear()
