"""Runs of nas-run as child processes, and how they end."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from fault_harness.outcome import difference, left_by

TINY = [
    *("data=synthetic", "data.train=64", "data.test=16", "runtime.device=cpu", "runtime.threads=1", "tracker=jsonl"),
    *("search.epochs=4", "search.batch_size=8", "space.channels=2", "space.cells=1", "saving.every_steps=2"),
    *("retrain.epochs=4", "retrain.batch_size=8", "retrain.network={channels: 2, cells: 1}", "formats=[]"),
]
CHECKOUT = Path(__file__).resolve().parents[2]


class Runs:
    """Starts runs that are alike, each in a directory of its own. What they print goes to ``log``, where this one runs.

    overrides: of nas-run, beside those that make it tiny.
    """

    def __init__(self, overrides):
        self.arguments = [*TINY, *overrides]

    def start(self, directory, *overrides, before=lambda: None):
        """Fork a run. Returns its process id. before: called in it first."""
        return forked([*self.arguments, f"hydra.run.dir={directory}", *overrides], before)

    def job(self, directory):
        """Start a run of two processes, which torchrun starts anew when one of them dies."""
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
        with open("log", "a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *torchrun, "-m", "nas.cli.run", *self.arguments, f"hydra.run.dir={directory}"],
                env={**os.environ, "PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": ""},
                stdout=log,
                stderr=log,
            )

    def resumed(self, directory, expected):
        """Resume to the end. Returns what is wrong then, None if nothing is. expected: what an undisturbed run left."""
        if (directory / "manifest.json").exists():
            child = resume(directory)
        else:  # killed before it had begun
            shutil.rmtree(directory, ignore_errors=True)
            child = self.start(directory)
        if (code := finish(child)) != 0:
            return f"the resumed run ended with {code}: {last_words()}"
        return difference(expected, left_by(directory))


def resume(directory):
    """Fork what goes on with a run. Returns its process id."""
    return forked([f"resume={directory}"])


def forked(arguments, before=lambda: None):
    """Fork nas-run. Returns its process id. before: called in it first."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        before()
        sys.argv = ["nas-run", *arguments]
        from nas.cli.run import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(child):
    """Its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def alive(child):
    return os.waitpid(child, os.WNOHANG) == (0, 0)


def code_or(code, expected):
    """What is wrong with an exit code, None if nothing is."""
    return None if code == expected else f"it ended with {code}, expected {expected}"


def last_words():
    return Path("log").read_text().strip().splitlines()[-1]
