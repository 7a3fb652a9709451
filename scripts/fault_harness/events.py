"""Kills runs at events of the file system: every opening, renaming, removing and flushing in a run's directory."""

import os
import shutil
import signal
import sys
from pathlib import Path

from fault_harness.runs import code_or, finish

WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "flushed"}


def counted(directory, *, kill_at=None, report=None):
    """Returns a function that a run calls first. It counts the events in `directory`.

    kill_at: the run is killed before the event of this number. report: a file for the count, written at each event.
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
    """Yields (fault, problem or None) for `count` runs, each killed at one event."""
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
        # If saving takes another share of the time, there are a few more or fewer checkpoints, and events.
        wrong = None if code == 0 else code_or(code, -signal.SIGKILL) or runs.resumed(directory, expected)
        yield f"killed at event {number} of {total} of the file system", wrong
        if wrong is None:
            shutil.rmtree(directory)
