"""Small file systems, which a process mounts only for itself."""

import ctypes
import os
import sys
import tempfile
from pathlib import Path

from fault_harness.runs import code_or, finish, last_words

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
NOT_POSSIBLE = 77


def mount_small(place, size):
    """Mounts an empty file system of that size on a directory, for this process and its children. Linux only.

    Raises OSError if this is not allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS | CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, f"size={size}".encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def small_temporary_directory(runs):
    """Yields (fault, problem or None) for a run that exports while TMPDIR is full."""
    if sys.platform != "linux":
        return
    small, directory = Path("small").resolve(), Path("full_tmpdir").resolve()
    small.mkdir()

    def before():
        try:
            mount_small(small, "8k")
        except OSError:
            os._exit(NOT_POSSIBLE)
        os.environ["TMPDIR"] = tempfile.tempdir = str(small)
        with open(small / "filler", "wb") as stream:
            stream.write(bytes(4096))

    code = finish(runs.start(directory, "formats=[weights,program]", before=before))
    if code == NOT_POSSIBLE:
        yield "TMPDIR full (not tried: nothing can be mounted here)", None
        return
    missing = [file for file in ("weights.safetensors", "model.pt2") if not (directory / "export" / file).exists()]
    yield "TMPDIR full", code_or(code, 0) or (f"{missing} is missing: {last_words()}" if missing else None)
