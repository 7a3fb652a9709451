"""scripts/bench_host: the host's part of a step in two checkouts."""

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("bench_host", str(ROOT / "scripts" / "bench_host"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_ratios_are_of_pairs(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", str(ROOT), str(ROOT), "--pairs", "1"])
    assert script.main() == "error: --pairs must be at least 2, got 1; set --pairs 30"
    found = script.summary([1e-3, 2e-3, 8e-3], [0.5e-3, 1e-3, 2e-3])
    assert found == {"old_us": 2000, "new_us": 1000, "quartiles": [0.375, 0.5, 0.5]}


@pytest.mark.long
def test_a_checkout_beside_itself(script, monkeypatch, tmp_path, capsys):
    out = tmp_path / "host.json"
    monkeypatch.setattr(sys, "argv", ["x", str(ROOT), str(ROOT), "--pairs", "4", "--parts", "--out", str(out)])
    assert script.main() is None
    found, parts = json.loads(out.read_text()).values()
    names = [*script.ROWS, "both steps, without operators"]
    assert [name for name in found if name.endswith("again")] == [f"{name}, again" for name in names]
    assert found["operators"]["new_us"] < found["both steps, again"]["new_us"]
    assert all(row["old_us"] > 0 for row in found.values())
    assert all(seconds > 0 for seconds in parts.values())
    assert capsys.readouterr().out.count("\n") == 2 + len(found) + 3 + len(parts)
