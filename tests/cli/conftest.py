"""Fixtures that run the commands in this process, as a shell would run them."""

import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

# The quickstart on 48 made-up images and the smallest networks: seconds, and every file of a run.
TINY = (
    "experiment=quickstart",
    "data=synthetic",
    "data.train=48",
    "data.test=16",
    "data.classes=3",
    "search.epochs=2",
    "search.batch_size=8",
    "retrain.epochs=2",
    "retrain.batch_size=16",
    "space.channels=4",
    "retrain.network.channels=4",
    "runtime.device=cpu",
    "formats=[]",  # each takes seconds; see test_export.py
)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def nas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """nas("search", "seed=1", ...): run nas-search in an empty directory, with what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(command: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"nas-{command}", *arguments])
        root = logging.getLogger()
        handlers, level, code = set(root.handlers), root.level, 0
        try:
            importlib.import_module(f"nas.cli.{command}").main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:  # Hydra's job_logging=default would write to this test's closed output in each test that follows.
            for handler in set(root.handlers) - handlers:
                root.removeHandler(handler)
                handler.close()
            root.setLevel(level)
        return Outcome(code, *capfd.readouterr())

    return run
