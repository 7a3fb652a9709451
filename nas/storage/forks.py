"""Closes descriptors in forked processes that must not have them. A forked copy would keep a lock locked."""

import contextlib
import os

_private: dict[int, tuple[int, int]] = {}  # descriptor -> device and inode of its file
_registered = False


def close_in_children(descriptor: int) -> None:
    """Closes the descriptor in every process that Python forks from now on, while it belongs to the same file."""
    global _registered
    if not hasattr(os, "register_at_fork"):  # Windows, which has no fork
        return
    if not _registered:  # Python cannot undo it
        os.register_at_fork(after_in_child=_close_all)
        _registered = True
    _private[descriptor] = _file(descriptor)


def _file(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _close_all() -> None:
    for descriptor, file in _private.items():
        with contextlib.suppress(OSError):  # already closed
            if _file(descriptor) == file:
                os.close(descriptor)
    _private.clear()
