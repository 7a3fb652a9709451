"""runtime.profile: the files it writes, and that it changes nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.conftest import TINY, Outcome

Nas = Callable[..., Outcome]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["weights/loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_a_profile_of_search_and_retraining_changes_no_bit(nas: Nas, tmp_path: Path) -> None:
    steps = ["data.train=64", "search.epochs=2", "retrain.epochs=2"]  # 8 and 8
    assert nas("run", *TINY, *steps, "hydra.run.dir=plain").code == 0
    outcome = nas("run", *TINY, *steps, "runtime.profile=true", "hydra.run.dir=profiled")
    assert (outcome.code, outcome.err) == (0, "")
    for stage in ("search", "retrain"):
        assert not (tmp_path / "plain" / stage / "operators.txt").exists()
        table = (tmp_path / "profiled" / stage / "operators.txt").read_text()
        assert table in outcome.out
        assert "aten::convolution_backward" in table
        assert table.startswith("operator, mean of 3 steps")
        events = json.loads((tmp_path / "profiled" / stage / "steps.pt.trace.json").read_text())["traceEvents"]
        recorded = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
        assert recorded == {"ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"}
    plain, profiled = (tmp_path / name for name in ("plain", "profiled"))
    assert (plain / "result.json").read_text() == (profiled / "result.json").read_text()
    assert losses(plain) == losses(profiled)


def test_a_stage_with_too_few_steps_leaves_no_profile(nas: Nas, tmp_path: Path) -> None:
    outcome = nas("search", *TINY, "data.train=16", "search.epochs=1", "runtime.profile=true", "hydra.run.dir=short")
    assert (outcome.code, outcome.err) == (0, "")
    assert not (tmp_path / "short" / "search" / "operators.txt").exists()
