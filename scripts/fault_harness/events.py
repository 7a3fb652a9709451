"""Kills at events of the file system: every opening, renaming, removing and flushing in a run's directory is one."""

import os
import shutil
import signal
import sys
from pathlib import Path

from fault_harness.runs import code_or, finish

WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "flushed"}


def counted(directory, *, kill_at=None, report=None):
    """What a run is to call first: it counts the events in `directory`, and is killed before number `kill_at`.

    report: a file that the count is written to at each event.
    """

    def begin():
        place, count = os.fspath(directory), 0

        def note(event, arguments):
            nonlocal count
            if event not in WATCHED or not any(inside(one, place) for one in arguments[:2]):
                return
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if report is not None:
                os.pwrite(report, b"%9d" % count, 0)

        flush = os.fsync

        def flushed(descriptor):
            sys.audit("flushed", os.readlink(f"/proc/self/fd/{descriptor}"))
            flush(descriptor)

        os.fsync = flushed
        sys.addaudithook(note)

    return begin


def inside(argument, place):
    return isinstance(argument, str | os.PathLike) and os.fspath(argument).startswith(place)


def killed_at_events(runs, count, expected, rng):
    """(fault, what is wrong; None for nothing) of `count` runs that are killed at an event each."""
    if not count or sys.platform != "linux":
        return
    whole = Path("counted").resolve()
    report = os.open("events", os.O_RDWR | os.O_CREAT)
    code = finish(runs.start(whole, before=counted(whole, report=report)))
    total = int(os.pread(report, 9, 0) or 0)
    os.close(report)
    if code != 0 or total < count:
        yield "events of the file system", f"the counted run ended with {code} after {total} of them"
        return
    for number in sorted(rng.sample(range(1, total + 1), count)):
        directory = Path(f"event{number}").resolve()
        code = finish(runs.start(directory, before=counted(directory, kill_at=number)))
        # Few more or less are written where saving takes another share of the time.
        wrong = None if code == 0 else code_or(code, -signal.SIGKILL) or runs.resumed(directory, expected)
        yield f"killed at event {number} of {total} of the file system", wrong
        if wrong is None:
            shutil.rmtree(directory)
