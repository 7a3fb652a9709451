"""Starts runs of nas-run as child processes, and waits for their end."""

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
    """Starts equal runs, each in its own directory. Their output goes to ``log`` in the current directory.

    overrides: of nas-run, beside those that make the runs tiny.
    """

    def __init__(self, overrides):
        self.arguments = [*TINY, *overrides]

    def start(self, directory, *overrides, before=lambda: None):
        """Forks a run. Returns its process id. before: called first in the run."""
        return forked([*self.arguments, f"hydra.run.dir={directory}", *overrides], before)

    def job(self, directory):
        """Starts a run of two processes. torchrun starts them again when one of them dies."""
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
        with open("log", "a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *torchrun, "-m", "nas.cli.run", *self.arguments, f"hydra.run.dir={directory}"],
                env={**os.environ, "PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": ""},
                stdout=log,
                stderr=log,
            )

    def resumed(self, directory, expected):
        """Resumes a run to the end. Returns the problem, or None. expected: the results of an undisturbed run."""
        if (directory / "manifest.json").exists():
            child = resume(directory)
        else:  # killed before it had a manifest
            shutil.rmtree(directory, ignore_errors=True)
            child = self.start(directory)
        if (code := finish(child)) != 0:
            return f"the resumed run ended with {code}: {last_words()}"
        return difference(expected, left_by(directory))


def resume(directory):
    """Forks a process that resumes a run. Returns its process id."""
    return forked([f"resume={directory}"])


def forked(arguments, before=lambda: None):
    """Forks nas-run. Returns its process id. before: called first in the child."""
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
    """Waits for a child. Returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def alive(child):
    return os.waitpid(child, os.WNOHANG) == (0, 0)


def code_or(code, expected):
    """Returns the problem with an exit code, or None."""
    return None if code == expected else f"it ended with {code}, expected {expected}"


def last_words():
    return Path("log").read_text().strip().splitlines()[-1]
