"""Kills runs at random moments of the search and of the retraining."""

import collections
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from fault_harness.runs import alive, finish

PLACES = ("before the search", "in the search", "in the retraining", "after it")


def writing(directory):
    return any(directory.glob("*/.checkpoint.pt.*.tmp"))


def reached(directory):
    """Returns which of PLACES a run has reached."""
    if (directory / "result.json").exists():
        return PLACES[3]
    if (directory / "retrain").exists():
        return PLACES[2]
    return PLACES[1] if (directory / "search").exists() else PLACES[0]


def durations(directory):
    """Returns stage -> seconds that it took."""
    began, searched, retrained = (
        (directory / name).stat().st_mtime for name in ("config.yaml", "search/checkpoint.pt", "retrain/checkpoint.pt")
    )
    return {"search": searched - began, "retrain": retrained - searched}


def killed(runs, directory, stage, seconds, in_write, rng):
    """Starts a run and kills it at a random moment of the `seconds` of a stage.

    Returns whether the run was still alive.
    """
    child = runs.start(directory)
    deadline = None
    while alive(child):
        if deadline is None and (directory / stage).exists():
            deadline = time.monotonic() + rng.uniform(0, seconds)
        if deadline is not None and time.monotonic() > deadline and (not in_write or writing(directory)):
            os.kill(child, signal.SIGKILL)
            finish(child)
            return True
        time.sleep(0.0002 if in_write else 0.002)
    return False


def kill_and_resume(runs, kills, expected, rng):
    """Kills and resumes runs. Returns how many of `kills` resumed runs were identical, and two counters over PLACES.

    The counters are the kills at each place, and those of them in the middle of writing a checkpoint.
    """
    identical = done = 0
    seconds = durations(Path("undisturbed"))
    places, writes = collections.Counter(), collections.Counter()
    while done < kills:
        directory = Path(f"run{done}").resolve()
        in_write, stage = done % 2 == 1, ("search", "retrain")[done // 2 % 2]
        if not killed(runs, directory, stage, seconds[stage], in_write, rng):
            seconds = durations(directory)  # the run ended before the kill: the machine is less busy than before
            shutil.rmtree(directory)
            continue
        place = reached(directory)
        places[place] += 1
        writes[place] += writing(directory)
        done += 1
        wrong = runs.resumed(directory, expected)
        identical += wrong is None
        if wrong is not None:
            print(f"kill {done}: {wrong} (kept in {directory})")
            continue
        shutil.rmtree(directory)
        print(f"\r{identical} of {done} identical", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return identical, places, writes
