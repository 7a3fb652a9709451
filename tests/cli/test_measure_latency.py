"""scripts/measure_latency, and a search that reads its table."""

import importlib.machinery
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.conftest import TINY, Outcome

from nas.methods.latency_table import LatencyTable

SCRIPT = Path(__file__).parents[2] / "scripts" / "measure_latency"
Nas = Callable[..., Outcome]


@pytest.fixture
def measure_latency(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str | None]:
    """The script's main() with arguments, in an empty directory."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    loader = importlib.machinery.SourceFileLoader("measure_latency", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)

    def run(*arguments: str) -> str | None:
        monkeypatch.setattr(sys, "argv", ["measure_latency", *arguments])
        problem: str | None = module.main()
        return problem

    return run


def test_the_script_measures_what_a_search_then_reads(
    nas: Nas, measure_latency: Callable[..., str | None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert measure_latency("table.json", *TINY, "runtime.threads=1", "--repeats", "2", "--warmup", "1") is None
    assert re.search(r"wrote table.json, milliseconds on cpu, .*1 thread\n", capfd.readouterr().out)
    table = LatencyTable.load(tmp_path / "table.json")
    assert len({key for key, _ in table.candidates}) == 6  # the edges of the cell,
    assert len(table.candidates) == 18  # at three widths
    most = table.fixed + sum(max(measured.values()) for measured in table.candidates.values())

    search = (
        *TINY, "tracker=jsonl", "regulariser=latency", "regulariser.latency.table=table.json",
    )  # fmt: skip
    # The mean over the candidates is within reach whatever was measured; a part of the largest sum need not be.
    mean = table.fixed + sum(sum(measured.values()) / len(measured) for measured in table.candidates.values())
    reached = f"regulariser.latency.target={mean}"
    assert nas("search", *search, reached, "hydra.run.dir=out").code == 0
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert table.fixed < line["regulariser/latency/expected"] < most

    problem = measure_latency("nowhere/table.json", *TINY, "--repeats", "1", "--warmup", "0")
    assert problem == (
        "error: nowhere/table.json cannot be written (No such file or directory); give a path you can write to"
    )
    outcome = nas("search", *search, "regulariser.latency.target=1e6")
    assert outcome.code == 2
    assert "regulariser.latency.target is 1,000,000 ms, which no architecture of the space can reach" in outcome.err

    outcome = nas("search", *search, reached, "retrain.network.channels=8")
    assert (outcome.code, outcome.err) == (
        2,
        "error: the latency table has no none at cell/0-1 for inputs [[1, 8, 8, 8]], expected every candidate of the "
        "network that is retrained; measure a table with scripts/measure_latency and the same space, data and "
        "retrain.network\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("space=nope",), "space=nope is not an option of space; expected one of "),
        (("space.channels=0",), "space.channels must be an integer >= 1, got 0; "),
        (("retrain.network.chanels=3",), "retrain.network sets chanels, which the space nas_bench_201 does not have; "),
        (("--repeats", "0"), "--repeats must be at least 1, got 0; set --repeats 1"),
    ],
)
def test_mistakes(
    measure_latency: Callable[..., str | None], arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    problem = measure_latency("table.json", "data=synthetic", *arguments)
    assert problem is not None
    assert problem.startswith(f"error: {message}")
    assert not any(tmp_path.iterdir())
