"""Faults in runs that stream images: signals to the whole process group, killed workers, a small /dev/shm."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from fault_harness.outcome import difference, left_by
from fault_harness.runs import CHECKOUT, code_or, finish, last_words, resume

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")
LONG = 300  # seconds after which a run that should have ended counts as hanging


def images(root):
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("test", 8)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


def streamed(runs, root):
    """Returns the arguments of runs that stream the images of `root`."""
    others = [argument for argument in runs.arguments if not argument.startswith("data")]
    return [*others, "data=image_folder", f"data.root={root}", "data.memory_limit_mb=0", "data.workers=2"]


def started(arguments, *, module="nas.cli.run", before=None):
    """Starts a command in its own process group."""
    with open("log", "a") as log:
        return subprocess.Popen(
            [*(before or ()), sys.executable, "-m", module, *arguments],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": ""},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def ended(process):
    """Returns the exit code. Kills a process that hangs, and returns None."""
    try:
        return process.wait(LONG)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def wait_until(there, process):
    """Waits until `there` returns true. Returns False if the process ends before."""
    while not there():
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return True


def status(directory):
    return json.loads((directory / "manifest.json").read_text())["status"]


def stopped_wrongly(directory, code, number):
    """Returns the problem with a run that a signal has stopped, or None."""
    wrong = code_or(code, 128 + number)
    if wrong is None and (found := status(directory)) != "interrupted":
        wrong = f"its status is {found}, expected interrupted"
    return wrong


def group_signals(runs, count, rng):
    """Yields (fault, problem or None) for `count` signals to the process groups of streamed runs.

    The groups are of a single run, and of two jobs of joblib side by side, in turns.
    """
    if not count:
        return
    root = Path("images").resolve()
    images(root)
    whole = Path("whole_streamed").resolve()
    arguments = streamed(runs, root)
    if ended(started([*arguments, f"hydra.run.dir={whole}"])) != 0:
        yield "a streamed run", f"it failed: {last_words()}"
        return
    expected = left_by(whole)
    for turn in range(count):
        name, stage = SIGNALS[turn % len(SIGNALS)], ("search", "retrain")[turn // 2 % 2]
        number, side_by_side = getattr(signal, name), turn % 2 == 1
        place = Path(f"group{turn}").resolve()
        if side_by_side:
            process = started(
                ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", *arguments,
                 f"hydra.sweep.dir={place}", "hydra.sweep.subdir=${hydra.job.num}"]
            )  # fmt: skip
            directories = [place / "0", place / "1"]
        else:
            process = started([*arguments, f"hydra.run.dir={place}"])
            directories = [place]
        reached = wait_until(lambda: all((one / stage / "checkpoint.pt").exists() for one in directories), process)  # noqa: B023
        time.sleep(rng.uniform(0, 0.05))
        if reached and all(status(one) == "running" for one in directories):
            os.killpg(process.pid, number)
        code = ended(process)
        done = [one for one in directories if status(one) == "finished"]
        wrong = None
        if len(done) < len(directories):
            for one in directories:
                if one not in done:
                    wrong = wrong or stopped_wrongly(one, code, number) or code_or(finish(resume(one)), 0)
            wrong = wrong or difference(expected, left_by(directories[0]))
        if wrong is None:
            shutil.rmtree(place)
        kind = "two jobs of joblib" if side_by_side else "a run"
        yield f"{name} to the group of {kind} in {stage}{' (it was faster)' * bool(done)}", wrong


def killed_workers(runs):
    """Yields (fault, problem or None) for killed workers in each stage, and for a small /dev/shm."""
    root, whole = Path("images").resolve(), Path("whole_streamed")
    if not (whole / "result.json").exists():
        return  # `group_signals` has reported it
    expected = left_by(whole)
    for stage in ("search", "retrain"):
        directory = Path(f"worker_{stage}").resolve()
        longer = ["search.epochs=40", "retrain.epochs=40"]
        process = started([*streamed(runs, root), *longer, f"hydra.run.dir={directory}"])
        wait_until(lambda: (directory / stage / "checkpoint.pt").exists(), process)  # noqa: B023
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        code = ended(process)
        wrong = code_or(code, 2) or (None if "data worker" in last_words() else f"it says: {last_words()}")
        if wrong is None:
            code = finish(resume(directory))
            wrong = code_or(code, 0)
        yield f"workers killed in {stage}", wrong
    small = Path("small_shm").resolve()
    mount = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=16k tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode != 0:
        yield "a small /dev/shm (not tried: it cannot be mounted here)", None
        return
    process = started([*streamed(runs, root), f"hydra.run.dir={small}"], before=mount)
    yield "a small /dev/shm", code_or(ended(process), 0) or difference(expected, left_by(small))
