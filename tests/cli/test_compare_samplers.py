"""scripts/compare_samplers: runs searches, looks their cells up, and compares them."""

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from spaces.test_nas_bench_201_table import every_cell

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_samplers"
TINY = ["data=synthetic", "data.train=48", "search.epochs=2", "search.batch_size=8", "runtime.device=cpu"]
SMALL = ["space.channels=2", "space.cells=1", "search.gap_batches=1"]


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    loader = importlib.machinery.SourceFileLoader("compare_samplers", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare_samplers", *map(str, arguments)])
        return module.main()

    module.run = run
    return module


@pytest.fixture
def table(tmp_path):
    """Every cell has its official order's number as its accuracy, in thousandths."""
    lines = [f"{index},{cell},{index / 1000}" for index, cell in enumerate(every_cell())]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["index,arch_str,my_test_1", *lines]) + "\n")
    return path


@pytest.mark.long
def test_it_prints_what_the_searches_logged(script, table, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(script, "SAMPLERS", {name: script.SAMPLERS[name] for name in list(script.SAMPLERS)[::8]})
    problem = script.run(table, "--column", "my_test_1", "--out", "out", *TINY, *SMALL)
    printed = capfd.readouterr()
    assert problem is None, printed.err
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [row["sampler"] for row in rows] == ["softmax (DARTS)", "uniform (random)"]
    for row, directory in zip(rows, ("softmax", "uniform"), strict=True):
        logs = [tmp_path / "out" / f"{directory}_seed{seed}" / "metrics.jsonl" for seed in (0, 1)]
        runs = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
        assert row["accuracies"] == [run[-1]["benchmark/my_test_1"] for run in runs]
        assert row["accuracy"] == pytest.approx(sum(row["accuracies"]) / 2)
        assert row["skips"] == sum(run[-1]["collapse/skips"] for run in runs) / 2
        gaps = [run[-1]["gap/relaxed"] - run[-1]["gap/recalibrated"] for run in runs]
        assert row["gap"] == pytest.approx(100 * sum(gaps) / 2)
        assert row["seconds_per_step"] > 0
        assert f"| {row['sampler']} | {row['accuracy']:.2f} (" in printed.out
    # Every operation runs in the one, a single one in the other.
    assert rows[0]["seconds_per_step"] > rows[1]["seconds_per_step"]
    assert "Derived skips: DARTS " in printed.out


def test_a_gap_that_was_not_measured_has_no_number(script):
    run = {"benchmark/a": 90.0, "collapse/skips": 1.0, "seconds_per_step": 0.1, "peak_memory_mib": 100.0}
    rows = [script.summary("one", [run], "a")]
    assert script.table(rows, "a").splitlines()[-1] == "| one | 90.00 (90.00) | - | 1.0 | 0.100 | 100 |"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["missing.csv"], "there is no table at missing.csv"),
        (["table.csv"], "has no column cifar10_test_200, only index, arch_str, my_test_1"),
        (["table.csv", "--column", "my_test_1", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["table.csv", "--column", "my_test_1", "--out", "."], "cannot be made (File exists)"),
    ],
)
def test_mistakes(script, table, arguments, problem):
    assert problem in script.run(*arguments)


def test_a_search_that_fails_is_told_with_its_last_line(script, table, tmp_path):
    problem = script.run(table, "--column", "my_test_1", "--seeds", "1", "data=digit")
    assert "nas-search failed" in problem
    assert "digits" in problem  # what Hydra offers instead
