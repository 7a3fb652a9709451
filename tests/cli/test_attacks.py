"""Hostile files and settings: nothing in them is run, and nothing is written outside of the run's directory."""

import ast
import io
import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import TINY, Outcome

import nas as package
from nas.cli.run import main
from nas.storage import checkpoint_file

Nas = Callable[..., Outcome]
SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))
SMALL = (*TINY, "search.epochs=1", "retrain.epochs=1", "tracker=jsonl")


def called(source: Path) -> set[str]:
    """The dotted names of all that a file calls, and ``shell=`` if it passes that."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call):
            found |= {ast.unparse(node.func)} | {f"{keyword.arg}=" for keyword in node.keywords}
    return found


def test_nothing_of_ours_runs_text_or_unpickles() -> None:
    assert len(SOURCES) > 100
    for source in SOURCES:
        assert_harmless(source)


def assert_harmless(source: Path) -> None:
    forbidden = {
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "pickle.load",
        "pickle.loads",
        "shell=",
    }
    assert not called(source) & (forbidden | {"yaml.load", "yaml.unsafe_load", "torch.hub.load", "marshal.loads"})
    if "torch.load" in called(source):
        tree = ast.walk(ast.parse(source.read_text()))
        loads = [node for node in tree if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
        assert all("weights_only=True" in map(ast.unparse, load.keywords) for load in loads)
    # A file is run only where it has just been written, to be compared with the network it was made of.
    if any(name.startswith("runpy.") for name in called(source)):
        assert source.name in ("standalone.py", "subprocess_main.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run."""
    directory = tmp_path_factory.mktemp("run") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nas-run", *SMALL, f"hydra.run.dir={directory}"])
        main()
    return directory


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that seems to have been killed."""
    directory = shutil.copytree(finished, tmp_path / "run")
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    return directory


def changed(run: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The checkpoint of its retraining, with a change and a valid checksum."""
    path = run / "retrain" / "checkpoint.pt"
    state = checkpoint_file.load(path, "retrain")
    change(state)
    checkpoint_file.save(path, "retrain", state)
    return path


HARM = "__import__('pathlib').Path('harmed').touch()"


def assert_refused(outcome: Outcome, *messages: str) -> None:
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert outcome.err.startswith("error: ")
    for message in messages:
        assert message in outcome.err
    assert not Path("harmed").exists()


# -- targets


@pytest.mark.parametrize(
    "override",
    [
        ("sampler._target_=os.system", "+sampler.command=touch harmed"),
        ("sampler._target_=nas.storage.atomic.os.system", "+sampler.command=touch harmed"),
        ("++temperature.end={_target_: os.system, command: touch harmed}",),
        ("+weight_optim.params={_target_: os.system, _args_: [touch harmed]}",),
        ("tracker._target_=nas.settings.configuration.build",
         '+tracker.node="{_target_: os.system, command: touch harmed}"'),
        ("task=custom", "task.loss._target_=os.system", "task.metric._target_=os.system", "task.name=x",
         "task.higher_is_better=true"),
    ],
    ids=lambda override: override[0],
)  # fmt: skip
def test_a_target_on_the_command_line(nas: Nas, override: tuple[str, ...]) -> None:
    assert_refused(nas("search", *TINY, *override), "outside of the packages that may be built")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "harm"),
    [
        (
            "space",
            {"_name_": "custom", "factory": "os.system", "arguments": {"command": "touch harmed"}},
        ),
        ("sampler", {"_name_": "os.system", "command": "touch harmed"}),
        ("data", {"_name_": "custom", "factory": "os.mkdir", "arguments": {"path": "harmed"}}),
        (
            "tracker",
            {
                "_name_": "nas.settings.configuration.build",
                "node": "{_target_: os.mkdir, path: harmed}",
                "allow": ["posix"],
            },
        ),
    ],
)
def test_a_stranger_s_run_directory(nas: Nas, run: Path, setting: str, harm: Any) -> None:
    """Neither is the permission that lies beside a target worth anything, nor is a factory trusted as one that the
    command line names is."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(run / "config.yaml")
    config[setting] = harm
    config.allow_targets = ["os", "posix"]
    OmegaConf.save(config, run / "config.yaml")
    assert_refused(nas("run", "resume=run"), "outside of the packages that may be built")


def test_what_a_directory_leaves_to_be_resolved(nas: Nas, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "the password")
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("init_std: 0.001", "init_std: ${oc.env:SECRET}"))
    outcome = nas("run", "resume=run")
    assert_refused(outcome, "run/config.yaml has search.init_std=${oc.env:SECRET}, expected a value")
    assert "the password" not in outcome.err


# -- checkpoints


def set_in(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


STRANGE = {
    "a target": (
        set_in("config", "space", value={"_target_": "os.system", "command": "touch harmed"}),
        "has no _name_: it was written by release 0.1.0, or is not of this project",
    ),
    "a target inside": (
        set_in("config", "space", "ops", "none", value={"_target_": "os.system", "command": "touch harmed"}),
        "has space.ops.none._target_: it was written by release 0.1.0",
    ),
    "a name that is an import path": (
        set_in("config", "space", value={"_name_": "os.system", "command": "touch harmed"}),
        "_target_ 'os.system' is none of the options that ship, and outside of the packages that may be built (none)",
    ),
    "a factory": (
        set_in("config", "space", value={"_name_": "custom", "factory": "os.mkdir"}),
        "_target_ 'os.mkdir' is none of the options that ship, and outside of the packages that may be built (none)",
    ),
    "an interpolation": (
        set_in("config", "data", "train", value="${oc.env:HOME}"),
        "data.train must be a whole number, got '${oc.env:HOME}'",
    ),
    "no configuration": (lambda state: state.pop("config"), "is incomplete, or was changed (KeyError: 'config')"),
    "a configuration of another type": (set_in("config", value=[1]), "is incomplete, or was changed (TypeError: "),
    "weights of another type": (set_in("network", value=7), "is incomplete, or was changed (TypeError: "),
    "no weights": (set_in("network", value={}), "do not fit its network"),
    "a genotype that is none": (set_in("genotype", value={"format": "nas-genotype"}), "has version None, expected 1"),
    "classes that are none": (set_in("data", "class_names", value=[1, 2, 3]), "data spec: expected str, got 1"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_stranger_s_checkpoint(nas: Nas, run: Path, case: str) -> None:
    change, message = STRANGE[case]
    path = changed(run, change)
    before = sorted(Path().rglob("*"))
    assert_refused(nas("evaluate", f"checkpoint={path}"), message)
    assert sorted(Path().rglob("*")) == before


def test_names_in_a_checkpoint_do_not_become_code(nas: Nas, run: Path) -> None:
    """The exported model.py has the names of data set and classes in it, and is run to be compared."""
    bad = f'"""\n{HARM}\n"""\\'

    def change(state: dict[str, Any]) -> None:
        state["data"]["name"] = bad
        state["data"]["class_names"] = [f"{bad}{number}" for number in range(3)]

    path = changed(run, change)
    run.rename(Path("elsewhere"))  # with the same data under the stranger's names
    outcome = nas(
        "export", f"checkpoint=elsewhere/retrain/{path.name}", "formats=[weights,standalone]", "hydra.run.dir=out"
    )
    assert not Path("harmed").exists()
    if outcome.code != 0:
        assert_refused(outcome, "has classes")


def test_a_checkpoint_that_unfolds(nas: Nas, tmp_path: Path) -> None:
    """A thousand times smaller than the tensor in it."""
    stream = io.BytesIO()
    state = {
        "format": checkpoint_file.FORMAT,
        "version": checkpoint_file.VERSION,
        "kind": "retrain",
        "network": {"weight": torch.zeros(1)},
    }
    torch.save(state, stream)
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(stream) as before,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as after,
    ):
        for name in before.namelist():
            with after.open(name, "w", force_zip64=True) as record:
                for _ in range(100 if name.endswith("data/0") else 1):
                    record.write(bytes(4_000_000) if name.endswith("data/0") else before.read(name))
    (tmp_path / "bomb.pt").write_bytes(checkpoint_file.sealed(packed.getvalue()))
    assert_refused(nas("evaluate", "checkpoint=bomb.pt"), "bomb.pt is damaged, or not a checkpoint of this project")


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harmed"),)


def test_a_pickle_that_carries_code(nas: Nas, tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(
        {"format": checkpoint_file.FORMAT, "version": checkpoint_file.VERSION, "kind": "retrain", "config": Harmful()},
        stream,
    )
    (tmp_path / "sealed.pt").write_bytes(checkpoint_file.sealed(stream.getvalue()))
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Harmful()))
    assert_refused(nas("evaluate", "checkpoint=sealed.pt"), "carries code; nothing of it was run")
    assert_refused(nas("evaluate", "checkpoint=plain.pt"), "is damaged, or not a checkpoint of this project")


# -- genotypes and paths


DEEP = 5_000_000

GENOTYPES = {
    "10 MB of brackets": ("[" * DEEP + "]" * DEEP, "has 10000000 bytes, expected at most 1000000"),
    "deep, and small enough": ("{" + '"a":{' * 150_000, "is not JSON (it is nested too deeply)"),
    "a target": (
        '{"_target_": "os.system", "command": "touch harmed"}',
        "is not a genotype; expected",
    ),
    "a key too many": (
        '{"format": "nas-genotype", "version": 1, "space": "x", "choices": {}, "_target_": "os.system"}',
        "has the fields format, version, space, choices, _target_",
    ),
    "another type": (
        '{"format": "nas-genotype", "version": 1, "space": "x", "choices": {"a": {"_target_": "os.system"}}}',
        "has choices that are not names",
    ),
    "code": (f"Genotype(normal=[({HARM}, 0)])", "is malformed at line 1"),
    "a pickle": ("cos\nsystem\n(S'touch harmed'\ntR.", "is malformed at line 1, column 1"),
}


@pytest.mark.parametrize("case", GENOTYPES)
def test_a_stranger_s_genotype(nas: Nas, tmp_path: Path, case: str) -> None:
    text, message = GENOTYPES[case]
    (tmp_path / "genotype.json").write_text(text)
    assert_refused(nas("retrain", *TINY, "genotype=genotype.json"), message)
    assert [path.name for path in Path().iterdir()] == ["genotype.json"]


@pytest.mark.parametrize("name", ["../../climbed", "..\\\\b", "a\tb"])
def test_a_name_that_climbs_out_of_its_directory(nas: Nas, tmp_path: Path, name: str) -> None:
    (tmp_path / "inside").mkdir()
    outcome = nas("search", *TINY, f'name="{name}"')
    assert_refused(outcome, "name must be a part of a file name, got ")
    assert [path.name for path in Path().iterdir()] == ["inside"]
