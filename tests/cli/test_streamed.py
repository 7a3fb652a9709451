"""Runs that stream images, and failures of their workers."""

import json
import multiprocessing.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli.conftest import TINY, Outcome
from PIL import Image

from nas.cli import parallel
from nas.data.workers import _STARTED
from nas.storage.checkpointing import Checkpoints
from nas.storage.signals import SIGNALS

Nas = Callable[..., Outcome]
STREAMED = (
    *(one for one in TINY if not one.startswith("data")),
    *("data=image_folder", "data.root=pets", "data.memory_limit_mb=0", "data.workers=1", "tracker=jsonl"),
    "search.batch_size=4",  # six steps an epoch: more than the batches that are read ahead
)


@pytest.fixture
def pets(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / split / name / f"{number}.png")


def in_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    after_step, count = Checkpoints.after_step, iter(range(1, 1_000_000))

    def counted(self: Checkpoints, state: Callable[[], dict[str, Any]]) -> None:
        after_step(self, state)
        if next(count) == step:
            act()

    monkeypatch.setattr(Checkpoints, "after_step", counted)


def workers() -> list[int]:
    """The live workers: workers of an earlier loader can have ended without being collected yet."""
    members = (member.process for one in _STARTED for member in one._members)
    return [process.pid for process in members if process.is_alive() and process.pid]


def status(directory: str) -> str:
    return str(json.loads(Path(directory, "manifest.json").read_text())["status"])


@pytest.mark.usefixtures("pets")
def test_a_lost_worker_is_one_line_and_costs_no_step(nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        in_step(patch, 2, lambda: [os.kill(pid, signal.SIGKILL) for pid in workers()] and None)
        outcome = nas("search", *STREAMED, "hydra.run.dir=out")
    assert outcome.code == 2
    assert outcome.err.startswith("error: data worker 0 (process ")
    assert f"all that was done is saved, resume={tmp_path}/out goes on" in outcome.err
    assert outcome.err.count("\n") == 1
    assert status("out") == "failed"
    assert nas("search", "resume=out").code == 0
    assert nas("search", *STREAMED, "hydra.run.dir=whole").code == 0
    one, two = (
        [
            {name: value for name, value in json.loads(line).items() if "second" not in name}
            for line in Path(run, "metrics.jsonl").read_text().splitlines()
        ]
        for run in ("out", "whole")
    )
    assert one == two


@pytest.mark.usefixtures("pets")
def test_a_signal_to_the_workers_too_saves_and_stops(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    in_step(monkeypatch, 2, lambda: [os.kill(pid, signal.SIGUSR2) for pid in (*workers(), os.getpid())] and None)
    outcome = nas("search", *STREAMED, "hydra.run.dir=out")
    assert outcome.code == 128 + signal.SIGUSR2
    assert outcome.err.startswith("error: stopped by SIGUSR2, all that was done is saved; resume=")
    assert outcome.err.count("\n") == 1
    assert status("out") == "interrupted"


def test_a_signal_in_an_export_leaves_no_temporary_file(
    nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nas.formats.export as module

    there = []

    def interrupt(*_: Any, **__: Any) -> None:
        there.append(list(temporary.rglob("genotype.json")) + list((tmp_path / "out").rglob(".*/**/genotype.json")))
        os.kill(os.getpid(), signal.SIGTERM)

    temporary = tmp_path / "tmp"
    temporary.mkdir()
    multiprocessing.util.get_temp_dir()  # made once a process and removed at its end: not in the patched directory
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(module, "compared", interrupt)
    outcome = nas("run", *TINY, "hydra.run.dir=out")
    assert outcome.code == 128 + signal.SIGTERM
    assert len(there) == 1
    assert list(temporary.iterdir()) == []
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert status("out") == "interrupted"


# -- side by side


def test_a_job_of_several_hands_its_end_to_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.cli.exits import stopped

    with pytest.raises(SystemExit) as left:
        stopped("stopped by SIGTERM", 143)
    assert left.value.code == 143
    monkeypatch.setattr("multiprocessing.parent_process", lambda: SimpleNamespace(pid=os.getppid()))
    monkeypatch.setattr(parallel, "_stopped", [])
    masks = []

    def job() -> None:
        with parallel.job():
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            stopped("stopped by SIGTERM", 143)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        for _ in range(2):  # no job begins after it
            with pytest.raises(parallel.JobStoppedError) as raised:
                job()
            assert raised.value.code == 143
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert [set(SIGNALS) <= mask for mask in masks] == [False, True, True]  # blocked between jobs


def test_a_job_whose_launcher_was_killed_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    parallel.leave_if_launcher_is_gone()
    monkeypatch.setattr("multiprocessing.parent_process", lambda: SimpleNamespace(pid=os.getppid()))
    parallel.leave_if_launcher_is_gone()
    assert left == []
    monkeypatch.setattr("multiprocessing.parent_process", lambda: SimpleNamespace(pid=-1))
    parallel.leave_if_launcher_is_gone()
    assert left == [143]


def test_the_launcher_passes_a_signal_on_and_ends_with_its_code() -> None:
    """In a process of its own: the threads of pytest-xdist do not block the signal that is sent to the process."""
    script = Path(__file__).parents[1] / "support" / "relayed_signal.py"
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (143, "ready SIGTERM, mask as before: True\n"), ended.stderr
