"""Kills one process of a torchrun job."""

import json
import os
import signal
import time
from pathlib import Path

from fault_harness.outcome import difference, left_by
from fault_harness.runs import code_or, last_words


def killed_processes(runs, count, rng):
    """Yields (fault, problem or None) for `count` jobs, each with one killed process."""
    if not count:
        return
    whole = Path("whole_job").resolve()
    if runs.job(whole).wait() != 0:
        yield "a job of two processes", f"it failed: {last_words()}"
        return
    expected = left_by(whole)
    for number in range(count):
        directory, stage, rank = Path(f"job{number}").resolve(), ("search", "retrain")[number % 2], rng.randrange(2)
        started = runs.job(directory)
        while not (directory / stage / "checkpoint.1.pt").exists() and started.poll() is None:
            time.sleep(0.01)
        processes = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        os.kill(int(processes[rank]), signal.SIGKILL)
        code = started.wait()
        again = len(json.loads((directory / "manifest.json").read_text()).get("resumed", []))
        wrong = code_or(code, 0) or (None if again == 1 else f"it was started anew {again} times, expected 1")
        yield f"process {rank} of a job killed in {stage}", wrong or difference(expected, left_by(directory))
