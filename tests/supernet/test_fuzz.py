"""Arbitrary files and texts, made by hypothesis, give a result or an error of this project, and write nothing.

They also end soon. The examples are the same in every run.
"""

import contextlib
import json
import string
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from nas.cli.resume import resumed
from nas.data.image_folder import ImageFolder
from nas.data.spec import DataSpec
from nas.errors import NasError
from nas.settings.configuration import build
from nas.spaces.published import resolve
from nas.storage import checkpoint_file
from nas.storage.metrics_log import JsonLines
from nas.storage.run_directory import read_manifest
from nas.supernet.genotype import Genotype
from nas.training.trained import Trained

FILES = settings(
    derandomize=True,
    deadline=120_000,  # milliseconds: of a hang, not of a machine that is busy
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


def mostly(values):
    """A dict like `values`, of which some are another or missing."""
    kept = {key: st.just(value) | JSON for key, value in values.items()}
    return st.fixed_dictionaries({}, optional=kept) | st.fixed_dictionaries(kept)


@pytest.fixture(autouse=True)
def nothing_else_is_written(tmp_path, monkeypatch):
    """Where a test works, and what is to be there at its end."""
    (tmp_path / "outside").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "work"}
    assert not any((tmp_path / "outside").iterdir())


def ours():
    return contextlib.suppress(NasError)


@FILES
@given(raw=mostly(Genotype("darts", {"a": "none"}).to_dict()) | JSON, cut=st.integers(0, 200))
def test_genotypes(raw, cut):
    text = json.dumps(raw)
    for some in (text, text[:cut]):
        Path("genotype.json").write_text(some)
        for read in (Genotype.load, resolve):
            with ours():
                assert isinstance(read("genotype.json"), Genotype)
    Path("genotype.json").unlink()


@FILES
@given(content=st.binary(max_size=300))
def test_genotypes_of_bytes(content):
    Path("genotype").write_bytes(content)
    with ours():
        resolve("genotype")


@FILES
@given(words=st.text(alphabet=string.printable + "é\0/|~()'", max_size=60))
def test_words_for_a_genotype(words):
    with ours():
        resolve(words)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "checkpoint.pt"
    checkpoint_file.save(path, "retrain", {"network": {"w": torch.arange(4.0)}, "epoch": 1, "config": {"a": [1, "b"]}})
    return path.read_bytes()


@FILES
@given(data=st.data())
def test_checkpoints_of_which_bytes_are_changed(whole, data):
    """With a valid checksum or without: what somebody who knows the format can make."""
    content = bytearray(whole[: -checkpoint_file.DIGEST_LENGTH - 2])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    changed = bytes(content[:cut])
    for made in (changed, checkpoint_file.sealed(changed + b"\0\0")):
        Path("checkpoint.pt").write_bytes(made)
        with ours():
            checkpoint_file.load("checkpoint.pt", "retrain")


SPEC = {
    "name": "d",
    "input_shapes": [[3, 4, 4]],
    "input_dtypes": ["float32"],
    "target_shape": [],
    "class_names": ["a", "b"],
}
CONFIG = {
    "space": {"_name_": "nas_bench_201", "ops": {}, "channels": 4, "cells": 1},
    "task": {"_name_": "classification"},
    "retrain": {"network": {}},
}


@FILES
@given(
    state=mostly(
        {"config": CONFIG, "data": SPEC, "genotype": Genotype("nas_bench_201", {"a": "b"}).to_dict(), "network": {}}
    ),
    config=mostly(CONFIG),
)
def test_checkpoints_that_hold_something_else(state, config):
    for some in (state, state | {"config": config}):
        checkpoint_file.save(Path("checkpoint.pt"), "retrain", some)
        with ours():
            Trained.load("checkpoint.pt", allow=[], runtime=None)


@FILES
@given(raw=mostly(SPEC))
def test_descriptions_of_data(raw):
    with ours():
        DataSpec.from_dict(raw)


@FILES
@given(
    raw=mostly({"status": "running", "command": ["nas-run"], "resumed": [], "wall_seconds": 1.5, "started": "x"})
    | JSON,
    cut=st.integers(0, 300),
)
def test_manifests(raw, cut):
    text = json.dumps(raw)
    for some in (text, text[:cut]):
        Path("manifest.json").write_text(some)
        with ours():
            found = read_manifest(Path())
            assert [*found.get("resumed", []), "now"]
            assert float(found.get("wall_seconds", 0.0)) + 1


@FILES
@given(lines=st.lists(mostly({"stage": "search", "epoch": 0, "loss": 1.0}) | JSON, max_size=5), cut=st.integers(0, 200))
def test_metrics(lines, cut):
    text = "\n".join(map(json.dumps, lines))
    Path("metrics.jsonl").write_text(text[: len(text) - cut] if cut < len(text) else text)
    with JsonLines(directory=Path()) as tracker:
        tracker.resume("search", 1, {"loss": 2.0})
    logged = [json.loads(line) for line in Path("metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in logged if line["stage"] == "search"][-1:] == [0]
    Path("metrics.jsonl").unlink()


@FILES
@given(
    text=st.text(max_size=60)
    | JSON.map(json.dumps)
    | st.sampled_from(["a: ${b}", "a: &a [*a]", "? [x]\n: 1", "!!python/object/apply:os.system [x]"])
)
def test_configurations_that_a_run_left(text):
    from omegaconf import OmegaConf

    Path("config.yaml").write_text(text, encoding="utf-8", errors="replace")
    given_now = OmegaConf.create({"resume": ".", "may_change": [], "allow_targets": [], "seed": 1})
    with ours():
        resumed(given_now, OmegaConf.create({"seed": 1}), [])


@FILES
@given(node=mostly({"_target_": "nas.training.Linear", "start": 1.0, "end": 0.0}) | JSON)
def test_groups_that_are_built(node):
    with ours():
        build(node)


NAMES = st.text(alphabet="ab.é ", min_size=1, max_size=3).filter(lambda name: name.strip(". "))


@FILES
@given(
    folders=st.dictionaries(NAMES, st.dictionaries(NAMES, st.binary(max_size=40), max_size=2), max_size=3),
    ending=st.sampled_from([".png", ".jpg", ".gif", ".txt"]),
    damaged=st.sampled_from(["stop", "skip"]),
)
def test_data_directories(folders, ending, damaged, tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for folder, files in folders.items():
        (root / folder).mkdir()
        for name, content in files.items():
            (root / folder / f"{name}{ending}").write_bytes(content)
    with ours():
        ImageFolder(root=str(root), damaged=damaged).load()


KEYS = ["seed", "search.epochs", "sampler", "space", "data.root", "x.y", "~lr", "+a", "name", "optim@x"]


@settings(FILES, max_examples=10)
@given(key=st.sampled_from(KEYS), value=st.text(alphabet="a1.,[]{}=$:'\"-/ \\", max_size=8))
def test_overrides(key, value, monkeypatch, capfd):
    """Through the whole command, up to where it would begin."""
    from nas.cli.command import command

    monkeypatch.setattr(sys, "argv", ["nas-run", "hydra.run.dir=out", f"{key}={value}"])
    with contextlib.suppress(SystemExit):
        command("run", lambda cfg, directory: None)
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert told == "" or (told.startswith("error: ") and told.count("\n") == 1), told
    assert not any(Path().iterdir())
