"""The faults of a table: damaged checkpoints, kills in the export, disks, clocks, a second process."""

import ctypes
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

from fault_harness.runs import code_or, finish, resume


def stopped_in_retraining(runs, directory, before=lambda: None):
    """Starts a run and stops it with SIGTERM once it retrains. Returns its exit code. before: as in `Runs.start`."""
    child = runs.start(directory, before=before)
    wait_for_retraining(directory)
    os.kill(child, signal.SIGTERM)
    return finish(child)


def wait_for_retraining(directory):
    """Waits until the retraining has two checkpoints."""
    while not (directory / "retrain" / "checkpoint.1.pt").exists():
        time.sleep(0.002)


def without_privileges():
    """Makes file permissions apply to root too, as to everybody else (capabilities(7), Linux)."""
    head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(head, sets) == 0:
        sets[0] &= ~0b110  # removes CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH from the effective set
        libc.capset(head, sets)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 3] ^= 1
    path.write_bytes(content)


def faults(runs, expected):
    """Yields (fault, problem or None) for one fault after the other."""
    for how in ("truncated", "bit flipped"):
        directory = Path(how.replace(" ", "_")).resolve()
        code = stopped_in_retraining(runs, directory)
        damage(directory / "retrain" / "checkpoint.pt", how)
        yield f"newest checkpoint {how}", code_or(code, 143) or runs.resumed(directory, expected)

    for moment, sign in (("begun", "export"), ("complete", "export/metadata.json")):
        directory = Path(f"export_{moment}").resolve()
        child = runs.start(directory)
        while not (directory / sign).exists():
            time.sleep(0.0002)
        os.kill(child, signal.SIGKILL)
        code = finish(child)
        yield f"killed with the export {moment}", code_or(code, -signal.SIGKILL) or runs.resumed(directory, expected)

    directory = Path("full").resolve()

    def small_disk():
        os.truncate("log", 0)  # the limit applies to the log too
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    code = finish(runs.start(directory, before=small_disk))
    yield "disk full", code_or(code, 2) or runs.resumed(directory, expected)

    if sys.platform == "linux":
        place = Path("read_only")
        place.mkdir(mode=0o555)
        code = finish(runs.start((place / "run").resolve(), before=without_privileges))
        yield "directory read-only from the start", code_or(code, 2) or next(map(str, place.iterdir()), None)

        directory = Path("became_read_only").resolve()
        child = runs.start(directory, before=without_privileges)
        wait_for_retraining(directory)
        (directory / "retrain").chmod(0o555)
        code = finish(child)
        (directory / "retrain").chmod(0o755)
        yield "directory read-only while it runs", code_or(code, 2) or runs.resumed(directory, expected)

    directory = Path("clock").resolve()

    def jumping_clock():
        real, time.time = time.time, lambda: real() + random.choice([-1e6, 0, 1e6])

    code = stopped_in_retraining(runs, directory, jumping_clock)
    yield "clock jumps", code_or(code, 143) or runs.resumed(directory, expected)

    directory = Path("two").resolve()
    first = runs.start(directory, "search.epochs=400")
    while not (directory / "search" / "checkpoint.pt").exists():
        time.sleep(0.002)
    second = finish(resume(directory))
    os.kill(first, signal.SIGKILL)
    finish(first)
    yield "two at once, the second refused", code_or(second, 2)
