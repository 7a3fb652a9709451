"""Runs that are stopped and resumed: they give the same bits as an unbroken run, or are refused with a reason."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import TINY, Outcome
from omegaconf import OmegaConf

from nas.cli.resume import check_command, check_same
from nas.cli.stages.setup import advice_for_moved_data
from nas.errors import ConfigError, DataError, GenotypeError
from nas.storage import atomic, checkpoint_file
from nas.storage.checkpointing import Checkpoints
from nas.storage.run_directory import locked
from nas.supernet.genotype import Genotype

Nas = Callable[..., Outcome]
RUN = (*TINY, "search.epochs=3", "retrain.epochs=3", "tracker=jsonl", "retrain.average=0.9")
TORTURE = Path(__file__).parents[2] / "scripts" / "torture"
TIMES = ("seconds", "seconds_per_step", "examples_per_second")


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Send this process a signal in the given step, counted over all stages, unless it is 0."""
    after_step, count = Checkpoints.after_step, iter(range(1, 1_000_000))

    def counted(self: Checkpoints, state: Callable[[], dict[str, Any]]) -> None:
        if next(count) == step:
            os.kill(os.getpid(), number)
        after_step(self, state)

    monkeypatch.setattr(Checkpoints, "after_step", counted)


def lines(directory: Path) -> list[dict[str, Any]]:
    logged = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in logged]


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    """Bit for bit, but for times."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one.keys() - set(TIMES):
            assert_equal(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list):
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}/{index}")
    else:
        assert one == other, place


def state(directory: Path, stage: str) -> dict[str, Any]:
    found = checkpoint_file.load(directory / stage / "checkpoint.pt", stage)
    del found["config"]  # which says whether it was resumed
    return found


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())  # type: ignore[no-any-return]


def manifest(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    command = [sys.executable, "-m", "nas.cli.run", *RUN, f"hydra.run.dir={directory}"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return directory


# Of 3 steps an epoch of the search, and as many of retraining: in the middle and at the end of an epoch of each.
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.long), 5, pytest.param(12, marks=pytest.mark.long)])
def test_a_stopped_run_ends_as_it_would_have(
    nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path, step: int
) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        outcome = nas("run", *RUN, "hydra.run.dir=out")
    assert (outcome.code, outcome.err) == (
        128 + signal.SIGTERM,
        "error: stopped by SIGTERM, all that was done is saved; resume=" + str(tmp_path / "out") + " goes on\n",
    )
    assert manifest(tmp_path / "out")["status"] == "interrupted"
    outcome = nas("run", "resume=out")
    assert (outcome.code, outcome.err) == (0, "")
    for stage in ("search", "retrain"):
        assert_equal(state(tmp_path / "out", stage), state(undisturbed, stage), stage)
    assert lines(tmp_path / "out") == lines(undisturbed)
    assert result(tmp_path / "out") == result(undisturbed)
    assert (tmp_path / "out" / "genotype.json").read_text() == (undisturbed / "genotype.json").read_text()
    found = manifest(tmp_path / "out")
    assert (found["status"], len(found["resumed"])) == ("finished", 1)
    assert list(Path().iterdir()) == [Path("out")]  # nothing beside it


@pytest.mark.long
def test_stopped_again_and_again(nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path) -> None:
    arguments, stops = [*RUN, "hydra.run.dir=out"], 0
    while True:
        with monkeypatch.context() as patch:
            signal_at(patch, 4, signal.SIGUSR1)
            code = nas("run", *arguments).code
        if code == 0:
            break
        assert code == 128 + signal.SIGUSR1
        arguments, stops = ["resume=out"], stops + 1
    assert stops >= 3
    assert_equal(state(tmp_path / "out", "retrain"), state(undisturbed, "retrain"))
    assert lines(tmp_path / "out") == lines(undisturbed)


@pytest.fixture
def stopped(undisturbed: Path, tmp_path: Path) -> Path:
    """A run that was killed in its second epoch of retraining, made of one that was not."""
    directory = shutil.copytree(undisturbed, tmp_path / "out")
    (directory / "result.json").unlink()
    shutil.rmtree(directory / "export")
    path = directory / "retrain" / "checkpoint.pt"
    path.with_name("checkpoint.1.pt").replace(path)
    (directory / "manifest.json").write_text(json.dumps(manifest(directory) | {"status": "running"}))
    return directory


def test_a_finished_run_has_nothing_to_resume(undisturbed: Path, nas: Nas) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    outcome = nas("run", f"resume={undisturbed}")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"The run in {undisturbed} has finished: there is nothing to resume.\n"
    changed = nas("run", f"resume={undisturbed}", "retrain.epochs=9")
    assert changed.code == 2
    assert "was started with another configuration: retrain.epochs=9 (was 3)" in changed.err
    allowed = nas("run", f"resume={undisturbed}", "retrain.epochs=9", "may_change=[retrain.epochs]")
    assert allowed.out == f"The run in {undisturbed} has finished: there is nothing to resume, or to change.\n"
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


def test_a_killed_run_ends_as_it_would_have(stopped: Path, nas: Nas, undisturbed: Path) -> None:
    assert nas("run", f"resume={stopped}").code == 0
    assert_equal(state(stopped, "retrain"), state(undisturbed, "retrain"))
    assert lines(stopped) == lines(undisturbed)
    assert result(stopped) == result(undisturbed)


@pytest.mark.parametrize(
    "lacking", [["metadata.json", "MODEL_CARD.md"], pytest.param(["metadata.json"], marks=pytest.mark.long), []]
)
def test_a_run_that_was_killed_while_it_exported(
    undisturbed: Path, tmp_path: Path, nas: Nas, lacking: list[str]
) -> None:
    directory = shutil.copytree(undisturbed, tmp_path / "out")
    for name in lacking:
        (directory / "export" / name).unlink()
    (directory / "manifest.json").write_text(json.dumps(manifest(directory) | {"status": "running"}))
    outcome = nas("run", f"resume={directory}")
    assert (outcome.code, outcome.err) == (0, "")
    assert result(directory) == result(undisturbed)
    for before in (undisturbed / "export").iterdir():
        assert (directory / "export" / before.name).read_bytes() == before.read_bytes()


def test_saying_again_what_the_run_was_started_with(stopped: Path, nas: Nas) -> None:
    again = [argument for argument in RUN if not argument.startswith("hydra")]
    assert nas("run", f"resume={stopped}", *again).code == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["retrain.epochs=4"], "retrain.epochs=4 (was 3)"),
        (["seed=7", "retrain.batch_size=8"], "seed=7 (was 0), retrain.batch_size=8 (was 16)"),
        (["sampler=softmax"], "sampler._name_=softmax (was gdas)"),
        (["retrain.epochs=4", "seed=1", "may_change=[retrain]"], "seed=1 (was 0)"),
        (["retrain.average=0"], "retrain.average=0.0 (was 0.9)"),  # the default, which the run did not have
        (["tracker=tensorboard"], "tracker._name_=tensorboard (was jsonl)"),
    ],
)
def test_another_configuration_is_refused(stopped: Path, nas: Nas, given: list[str], message: str) -> None:
    before = sorted(stopped.rglob("*"))
    outcome = nas("run", f"resume={stopped}", *given)
    assert outcome.code == 2
    assert outcome.err.startswith(
        f"error: the run in {stopped} was started with another configuration: {message}; "
        "leave it out, or allow it: 'may_change=["
    )
    assert outcome.err.count("\n") == 1
    assert sorted(stopped.rglob("*")) == before


def test_a_configuration_that_was_edited_is_refused(stopped: Path, nas: Nas) -> None:
    path = stopped / "config.yaml"
    path.write_text(path.read_text().replace("momentum: 0.9", "momentum: 0.8").replace("seed: 0", "seed: 1"))
    outcome = nas("run", f"resume={stopped}")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {stopped}/search/checkpoint.pt was written under another configuration: ")
    assert "seed=1 (was 0)" in outcome.err
    assert "weight_optim.momentum=0.8 (was 0.9)" in outcome.err
    assert outcome.err.count("\n") == 1


def test_what_may_change_changes(stopped: Path, nas: Nas) -> None:
    outcome = nas("run", f"resume={stopped}", "retrain.epochs=4", "may_change=[retrain.epochs]")
    assert (outcome.code, outcome.err) == (0, "")
    assert state(stopped, "retrain")["epoch"] == 4
    assert [line["epoch"] for line in lines(stopped) if line["stage"] == "retrain"] == [0, 1, 2, 3]


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_a_damaged_newest_checkpoint_costs_an_epoch_and_nothing_else(
    stopped: Path, nas: Nas, undisturbed: Path, stage: str
) -> None:
    path = stopped / stage / "checkpoint.pt"
    shutil.copy(path, path.with_name("checkpoint.1.pt"))
    path.write_bytes(path.read_bytes()[:-1000])
    outcome = nas("run", f"resume={stopped}")
    assert outcome.code == 0
    assert outcome.err == (
        f"warning: {path} is damaged, or not a checkpoint of this project; going on from the one before it\n"
    )
    assert_equal(state(stopped, "retrain"), state(undisturbed, "retrain"))
    assert lines(stopped) == lines(undisturbed)


def test_a_run_without_a_checkpoint_begins_anew(stopped: Path, nas: Nas, undisturbed: Path) -> None:
    for stage in ("search", "retrain"):
        shutil.rmtree(stopped / stage)
    assert nas("run", f"resume={stopped}").code == 0
    assert lines(stopped) == lines(undisturbed)


def test_two_processes_do_not_write_into_one_run(stopped: Path, nas: Nas) -> None:
    lock = locked(stopped)
    outcome = nas("run", f"resume={stopped}")
    os.close(lock)
    assert outcome.code == 2
    assert f"{stopped} is being written by another process ({manifest(stopped)['process']}); wait for it" in outcome.err
    assert nas("run", f"resume={stopped}").code == 0  # the lock of one that has ended holds nobody up


def test_another_number_of_processes_is_refused_unless_it_is_allowed(stopped: Path, nas: Nas) -> None:
    (stopped / "manifest.json").write_text(json.dumps(manifest(stopped) | {"processes": 2}))
    outcome = nas("run", f"resume={stopped}")
    assert (outcome.code, outcome.err) == (
        2,
        "error: the run was started with processes=2, got processes=1, which changes the results; start 2, by "
        "torchrun, or allow it: may_change=[processes]\n",
    )
    assert nas("run", f"resume={stopped}", "may_change=[processes]").code == 0
    assert manifest(stopped)["processes"] == 1


def test_a_run_goes_on_from_anywhere_and_takes_nothing_of_others_away(
    stopped: Path, nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "runs").touch()  # so that Hydra cannot make a directory here
    monkeypatch.chdir(tmp_path / "here")
    others = [stopped / name for name in ("notes/.draft.tmp", ".draft.tmp", "events.out.tfevents.1.mine")]
    others[0].parent.mkdir()
    for path in others:
        path.write_text("mine")
    left = atomic.temporary(stopped / "retrain" / "checkpoint.pt")
    left.touch()
    metrics = stopped / "metrics.jsonl"
    metrics.write_bytes(b"\0" + metrics.read_bytes()[1:])
    outcome = nas("run", "resume=../out")
    assert (outcome.code, outcome.err) == (
        0,
        "warning: ../out/metrics.jsonl: line 1 is damaged and left out, the others are kept\n",
    )
    assert lines(stopped) == lines(undisturbed)[1:]
    assert [path.read_text() for path in others] == ["mine"] * 3
    assert not left.exists()
    assert [path.name for path in Path().iterdir()] == ["runs"]


@pytest.mark.parametrize("root", ["pets", "/data/pets"])
def test_data_that_have_moved(root: str) -> None:
    config = OmegaConf.create({"resume": "runs/mine", "data": {"root": root}})
    relative = "start this where the run was started, as pets is relative; " if root == "pets" else ""
    with pytest.raises(DataError) as raised, advice_for_moved_data(config):
        raise DataError("there are none", fix="set data.root")
    assert str(raised.value) == (
        f"there are none; {relative}if the data have moved, give their new place: data.root=... may_change=[data.root]"
    )


@pytest.mark.parametrize("what", ["missing", "empty", "of something else"])
def test_a_directory_without_a_run(tmp_path: Path, nas: Nas, what: str) -> None:
    if what != "missing":
        (tmp_path / "out").mkdir()
    if what == "of something else":
        (tmp_path / "out" / "manifest.json").write_text("[]")
    outcome = nas("run", "resume=out")
    assert (outcome.code, outcome.err) == (
        2,
        "error: there is no run in out that could be resumed, expected its manifest.json; "
        "give the directory that a run left, e.g. resume=runs/my_run\n",
    )


def test_nothing_that_a_directory_names_is_trusted(stopped: Path, nas: Nas, tmp_path: Path) -> None:
    """Neither a target, nor the permission for it that lies beside it."""
    path = stopped / "config.yaml"
    text = path.read_text().replace("_name_: gdas", "_name_: os.system\n  command: touch harmed", 1)
    assert "os.system" in text
    path.write_text(text.replace("allow_targets: []", "allow_targets: [os, posix]"))
    outcome = nas("run", f"resume={stopped}")
    assert outcome.code == 2
    assert "outside of the packages that may be built (none)" in outcome.err
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("text", ["[1, 2]", "{", "a: ${b}\n", "\0"])
def test_a_configuration_that_cannot_be_read(stopped: Path, nas: Nas, text: str) -> None:
    (stopped / "config.yaml").write_text(text)
    outcome = nas("run", f"resume={stopped}")
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def test_retraining_alone(nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path) -> None:
    shutil.copy(undisturbed / "genotype.json", "mine.json")
    genotype = "genotype=mine.json"
    assert nas("retrain", *RUN, genotype, "hydra.run.dir=whole").code == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 5, signal.SIGINT)
        assert nas("retrain", *RUN, genotype, "hydra.run.dir=out").code == 130
    text = Path("mine.json").read_text()
    Path("mine.json").write_text(text.replace('"nor_conv_3x3"', '"x"').replace('"skip_connect"', '"nor_conv_3x3"'))
    assert text != Path("mine.json").read_text()
    outcome = nas("retrain", "resume=out")  # whose weights may fit by their shapes
    assert outcome.code == 2
    assert "out/genotype.json holds another genotype than the given one, e.g. cell/" in outcome.err
    Path("mine.json").unlink()  # the run has a copy
    assert nas("retrain", "resume=out").code == 0
    assert_equal(state(tmp_path / "out", "retrain"), state(tmp_path / "whole", "retrain"))
    assert result(tmp_path / "out") == result(tmp_path / "whole")


def test_a_genotype_that_has_moved_is_the_same_and_another_one_in_its_place_is_not(tmp_path: Path) -> None:
    before, moved = Genotype("mine", {"a": "x"}), tmp_path / "moved.json"
    (tmp_path / "genotype.json").write_text(before.to_json())
    (tmp_path / "config.yaml").write_text("genotype: /gone/mine.json\nseed: 0\n")

    def check(genotype: Genotype, place: str = str(moved)) -> None:
        moved.write_text(genotype.to_json())
        check_same(OmegaConf.create({"genotype": place, "seed": 0, "may_change": []}), tmp_path)

    check(before)
    with pytest.raises(GenotypeError, match=r"holds another genotype than the given one, e\.g\. a=y \(was x\)"):
        check(Genotype("mine", {"a": "y"}))
    (tmp_path / "config.yaml").write_text(f"genotype: {moved}\nseed: 0\n")
    with pytest.raises(GenotypeError, match="holds another genotype"):
        check(Genotype("mine", {"a": "y"}))
    with pytest.raises(ConfigError, match=r"genotype=/gone/other\.json \(was"):
        check(before, "/gone/other.json")


def test_the_run_of_another_command_is_no_finished_run_of_this_one(tmp_path: Path) -> None:
    for words in (["nas-run", "seed=0"], ["my_script.py"], [], "nas-search"):
        (tmp_path / "manifest.json").write_text(json.dumps({"command": words}))
        check_command(tmp_path, "nas-run")
    (tmp_path / "manifest.json").write_text('{"command": ["nas-search", "seed=0"]}')
    with pytest.raises(ConfigError, match="holds a run of nas-search, got nas-run; choose another directory"):
        check_command(tmp_path, "nas-run")


def test_tables_that_have_moved_are_no_other_configuration(tmp_path: Path) -> None:
    def text(place: str, name: str = "nas_bench_201") -> str:
        benchmark, latency = f"{{_name_: {name}, table: {place}/a.csv}}", f"{{table: {place}/b.json}}"
        return f"benchmark: {benchmark}\nregulariser: {{latency: {latency}}}\nmay_change: []\n"

    (tmp_path / "config.yaml").write_text(text("/gone"))
    check_same(OmegaConf.create(text("/here")), tmp_path)
    with pytest.raises(ConfigError, match=r"configuration: benchmark\._name_=other \(was nas_bench_201\);"):
        check_same(OmegaConf.create(text("/here", "other")), tmp_path)


@pytest.mark.parametrize("before", ["epochs: 1, start: null", "epochs: 1"])
def test_a_retraining_of_an_earlier_release_whose_start_was_none_goes_on(before: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"retrain: {{{before}}}\nmay_change: []\n")

    def check(start: str) -> None:
        check_same(OmegaConf.create({"retrain": {"epochs": 1, "start": start}, "may_change": []}), tmp_path)

    check("scratch")
    with pytest.raises(ConfigError, match=r"retrain\.start=supernet \(was scratch\)"):
        check("supernet")


@pytest.mark.long
def test_a_short_torture() -> None:
    done = subprocess.run(
        [sys.executable, str(TORTURE), "--kills", "2", "--events", "2", "--ranks", "0", "--groups", "1"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.stdout.startswith("2 of 2 killed and resumed runs identical"), done.stdout + done.stderr
    assert done.returncode == 0, done.stdout
