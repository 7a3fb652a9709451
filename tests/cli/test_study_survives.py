"""nas-study on real engines: whatever is killed, the study ends with the bits of an undisturbed one. Minutes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli.conftest import TINY

from nas.storage import checkpoint_file

pytest.importorskip("scipy", reason="needs scipy")
pytestmark = pytest.mark.long

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
    """What every job left, without times and paths."""
    left = {}
    for directory in sorted(home.glob("*/seed_*")):
        state = checkpoint_file.load(directory / "search" / "checkpoint.pt", "search")
        kept = {name: str(state[name]) for name in sorted(state.keys() - {"config", "metrics", "seconds"})}
        left[f"{directory.parent.name}/{directory.name}"] = (kept, (directory / "genotype.json").read_text())
    return left


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
