"""nas-study on real engines: whatever is killed, the study ends with the bits of an undisturbed one. Minutes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bits import of_search
from cli.conftest import TINY

pytest.importorskip("scipy", reason="needs scipy")
pytestmark = pytest.mark.long

SLURM = Path(__file__).parents[2] / "scripts" / "slurm_cluster"
SEEDS = (0, 1, 2, 3)
STUDY: dict[str, Any] = {
    "name": "eight",
    "common": [*TINY, "search.epochs=20", "tracker=jsonl", "search.gap_batches=1", "saving.share=null"],
    "methods": {"gdas": "sampler=gdas", "score": "sampler=score_function"},
    "seeds": list(SEEDS),
}
SECONDS = 600


def start(home: Path, *engine: str) -> subprocess.Popen[bytes]:
    (home.parent / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    command = [sys.executable, "-m", "nas.cli.study", "study.yaml", "--out", str(home), *engine]
    with (home.parent / f"{home.name}.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=home.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def wait_for(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError(f"{what} after {SECONDS} s")


def begun(home: Path) -> list[Path]:
    """The directories of jobs that have saved something and have not ended."""
    saved = (path.parents[1] for path in home.glob("*/seed_*/search/checkpoint.pt"))
    return sorted(directory for directory in saved if not (directory / "result.json").exists())


def bits(home: Path) -> dict[str, Any]:
    """What every job left."""
    return {f"{one.parent.name}/{one.name}": of_search(one) for one in sorted(home.glob("*/seed_*"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("undisturbed") / "study"
    assert start(home).wait(SECONDS) == 0
    left = bits(home)
    assert len(left) == 2 * len(SEEDS)
    shutil.rmtree(home)
    return left


@pytest.mark.parametrize("engine", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")], ids=["basic", "joblib"])
def test_a_study_whose_process_is_killed(engine: tuple[str, ...], undisturbed: dict[str, Any], tmp_path: Path) -> None:
    if engine:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
    home = tmp_path / "study"
    for _ in range(2):
        killed = start(home, *engine)
        ended = len(list(home.glob("*/seed_*/result.json")))
        wait_for(
            lambda ended=ended: begun(home) and len(list(home.glob("*/seed_*/result.json"))) > ended, "no job ended"
        )
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        assert not (home / "study.json").exists()
    assert start(home, *engine).wait(SECONDS) == 0
    assert bits(home) == undisturbed
    runs = json.loads((home / "study.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["finished"] * len(undisturbed)


def processes(*words: str) -> list[int]:
    """The numbers of the processes whose command or title has all of these words."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(word in title for word in words):
                found.append(int(directory.name))
    return found


def test_a_worker_of_ray_is_killed(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs hydra-ray-launcher")
    home = tmp_path / "study"
    engine = ("hydra/launcher=ray_local",)
    running = start(home, *engine)
    wait_for(lambda: len(begun(home)) >= 1, "no job began")
    workers = wait_for(lambda: processes("ray::_run_job"), "no worker runs")
    os.kill(workers[0], signal.SIGKILL)
    code = running.wait(SECONDS)
    if code != 0:  # the engine did not repeat the job by itself
        assert start(home, *engine).wait(SECONDS) == 0
    assert bits(home) == undisturbed


@pytest.fixture
def cluster() -> Iterator[None]:
    if "SLURM_CONF" not in os.environ or shutil.which("sbatch") is None:
        pytest.skip(f"needs a Slurm cluster: {SLURM} start, and the environment that it names")
    pytest.importorskip("submitit", reason="needs hydra-submitit-launcher")
    yield
    subprocess.run(["scancel", "--me"], check=False)


def running_jobs() -> list[str]:
    """The numbers of Slurm's jobs that run, as 12_3."""
    listed = subprocess.run(["squeue", "--noheader", "--states=R", "--format=%i"], capture_output=True, text=True)
    return listed.stdout.split()


@pytest.mark.usefixtures("cluster")
def test_jobs_are_preempted_and_the_node_is_stopped(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    home, engine = tmp_path / "study", ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1")
    running = start(home, *engine)
    for times in (1, 2):
        before = resumed(home)
        told: set[str] = set()

        def preempted(before: int = before, told: set[str] = told) -> bool:
            # As Slurm does for its own signal: to the job's steps. A job that has just ended refuses it, and one whose
            # Python only starts dies of it: also one that was told before, which Slurm starts again after two minutes.
            saved = {json.loads((directory / ".job.json").read_text())["number"] for directory in begun(home)}
            running = (number for number in running_jobs() if int(number.partition("_")[2]) in saved)
            if resumed(home) == before and (numbers := [number for number in running if number not in told]):
                told.add(numbers[-1])
                subprocess.run(["scancel", "--signal=USR2", numbers[-1]], check=False)
                time.sleep(10)
            return resumed(home) > before

        wait_for(preempted, f"preemption {times} resumed no job")
    wait_for(lambda: begun(home) and running_jobs(), "no job runs")
    subprocess.run([SLURM, "stop-node"], check=True)
    time.sleep(2)
    subprocess.run([SLURM, "start-node"], check=True)
    if running.wait(SECONDS) != 0:  # the launcher was told of the lost jobs
        assert start(home, *engine).wait(SECONDS) == 0
    assert bits(home) == undisturbed


def resumed(home: Path) -> int:
    """How often jobs of the study went on from a checkpoint."""
    manifests = (json.loads(path.read_text()) for path in home.glob("*/seed_*/manifest.json"))
    return sum(len(found.get("resumed", [])) for found in manifests)
