"""scripts/gpu_benchmarks: the order of its items, what a second call goes on from, files in parts."""

import importlib.machinery
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

from gpu_bench.items import Item, items
from gpu_bench.parts import join, split

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_benchmarks"


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Calls the script with some items, in a directory of results. Returns what went wrong, and the results."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("gpu_benchmarks", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)

    def called(found, *arguments, minutes=1):
        if found is not None:
            monkeypatch.setattr(module, "items", lambda overrides, miniature: found)
        monkeypatch.setattr(
            sys, "argv", ["x", "--minutes", str(minutes), "--resume", str(tmp_path), "--miniature", *arguments]
        )
        problem, path = module.main(), tmp_path / "results.json"
        return problem, json.loads(path.read_text()) if path.is_file() else {}

    called.module = module
    return called


def python(code):
    return [sys.executable, "-S", "-c", code]


def test_items_run_in_order_as_far_as_the_time_goes(call, capsys):
    found = [
        Item("prints", lambda d: [python("print('seen')")], 0.1),
        Item("fails", lambda d: [python("raise SystemExit('broken')"), python("print('not begun')")], 0.1),
        Item("long", lambda d: [python("")], 1000.0),
        Item("after", lambda d: [python("")], 0.1),
    ]
    problem, results = call(found)
    assert problem is None
    assert list(results) == ["prints", "fails"]
    assert (results["prints"]["ok"], results["fails"]["ok"], results["fails"]["done"]) == (True, False, True)
    assert results["prints"]["output"] == "seen\n"
    assert results["fails"]["output"] == "broken\n"
    shown = capsys.readouterr().out
    assert "| prints | done |" in shown
    assert "| fails | failed |" in shown
    # Another call goes on, and runs once more what it is told to.
    found[1:] = [Item("fails", lambda d: [python("print('mended')")], 0.1), Item("after", lambda d: [python("")], 0.1)]
    assert list(call(found)[1]) == ["prints", "fails", "after"]
    assert "prints ..." not in capsys.readouterr().out
    assert call(found, "--again", "fails")[1]["fails"]["output"] == "mended\n"
    assert "--again nope is no item, expected one of prints, fails, after" in call(found, "--again", "nope")[0]
    assert "--minutes must be > 0, got 0.0" in call(found, minutes=0)[0]


SAVES = """
import os, signal, sys, time, pathlib
saved = pathlib.Path({path!r})
if saved.is_file():
    sys.exit()
def stop(*_):
    saved.write_bytes(b"state" * 4)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
saved.with_name(f"ready{{os.getpid()}}").touch()
time.sleep(60)
"""


def test_what_is_stopped_goes_on_in_the_next_call(call, tmp_path, monkeypatch):
    path, wait = str(tmp_path / "checkpoint.pt"), call.module.wait

    def no_longer(running, until):
        while len(list(tmp_path.glob("ready*"))) < 2:
            time.sleep(0.01)
        return wait(running, time.monotonic())

    monkeypatch.setattr(call.module, "wait", no_longer)
    found = [Item("search", lambda d: [python(SAVES.format(path=path))] * 2, 0.1, at_once=True, resumes=True)]
    _, results = call(found)
    first = results["search"]
    assert (first["done"], first["ok"], first["codes"]) == (False, False, [143, 143])
    monkeypatch.setattr(call.module, "wait", wait)
    _, results = call(found)
    assert (results["search"]["done"], results["search"]["ok"]) == (True, True)
    assert results["search"]["seconds"] > first["seconds"]


def test_large_files_are_in_parts(tmp_path):
    content = bytes(range(256)) * 10
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "checkpoint.pt").write_bytes(content)
    (tmp_path / "small.json").write_text("{}")
    for _ in range(2):  # parts are no larger than they may be
        split(tmp_path, 1000)
        names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
        assert names == [*(f"checkpoint.pt.part{number:03}of003" for number in range(3)), "small.json"]
    lost = tmp_path / "runs" / "checkpoint.pt.part001of003"
    kept = lost.read_bytes()
    lost.unlink()
    assert join(tmp_path) == [str(tmp_path / "runs" / "checkpoint.pt")]
    lost.write_bytes(kept)
    assert join(tmp_path) == []
    assert (tmp_path / "runs" / "checkpoint.pt").read_bytes() == content
    assert not list(tmp_path.rglob("*.part*"))


def test_a_search_that_has_a_checkpoint_goes_on(tmp_path):
    (found,) = [item for item in items(["data.root=/data"], miniature=False) if item.name == "search_darts"]
    (command,) = found.commands(tmp_path)
    out = tmp_path / "runs" / "search_darts"
    assert command[2:] == ["nas.cli.search", "experiment=gdas_darts", "data.root=/data", f"hydra.run.dir={out}"]
    (out / "search").mkdir(parents=True)
    (out / "search" / "checkpoint.pt").touch()
    assert found.commands(tmp_path)[0][2:] == ["nas.cli.search", f"resume={out}"]


@pytest.mark.long
def test_everything_in_small(call):
    """On a CPU too, where only what needs a driver fails."""
    _, results = call(None, minutes=30)
    failed = {name: found["output"][-300:] for name, found in results.items() if not found["ok"]}
    assert list(results) == [item.name for item in items([], miniature=True)]
    assert failed.keys() <= {"probe", "gpu_tests"}, failed
