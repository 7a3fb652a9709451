"""The commands in two processes: they write the same files as one process, and no more."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import TINY, Outcome
from launch import torchrun
from omegaconf import OmegaConf

from nas.cli import sweep as sweep_of_jobs
from nas.cli.torchrun import left_at_once, refuse_several
from nas.errors import ConfigError
from nas.storage.names import absent, remove_if_empty

Nas = Callable[..., Outcome]

# Four steps an epoch in either stage, 20 in all. No layer draws random numbers, as each process has its own.
# Policies and mixing take seconds to import: see test_loader.py.
SETTINGS = (
    "space=custom",
    "space.factory=group_norms.GroupNorms",
    "data=synthetic",
    "data.train=128",
    "data.test=16",
    "data.classes=3",
    "data.crop_padding=1",
    "data.flip=true",
    "search.epochs=5",
    "search.batch_size=16",
    "search.gap_batches=1",
    "arch_optim.lr=0.01",
    "retrain.epochs=5",
    "retrain.batch_size=32",
    "retrain.cutout=2",
    "retrain.label_smoothing=0.1",
    "retrain.average=0.9",
    "runtime.device=cpu",
    "runtime.deterministic=false",  # on a CPU all of this is, and asking for it takes two seconds
    "tracker=jsonl",
    "saving.share=null",  # which epochs are saved is not to depend on how long saving takes
    "formats=[]",
)


def assert_close(one: Any, two: Any, where: str) -> None:
    """To 1e-4, at any depth, but for what tells of time, and what only other processes have."""
    if isinstance(one, dict):
        assert one.keys() - {"others"} == two.keys() - {"others"}, where
        for key in one.keys() - {"seconds", "seconds_per_step", "examples_per_second", "config", "others"}:
            of_each_process = key in ("task", "generators") and where.endswith(".pt")
            pair = (one[key][:1], two[key][:1]) if of_each_process else (one[key], two[key])
            assert_close(*pair, f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for number, pair in enumerate(zip(one, two, strict=True)):
            assert_close(*pair, f"{where}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.allclose(one.double(), two.double(), rtol=0, atol=1e-4), where
    else:
        assert one == (pytest.approx(two, abs=1e-4) if isinstance(one, float) else two), where


def left(run: Path) -> dict[str, Any]:
    """All that a run left, by file."""
    read: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        ".pt": lambda path: torch.load(path, weights_only=True),
    }
    files = sorted(path for path in run.rglob("*") if path.is_file())
    return {str(path.relative_to(run)): read.get(path.suffix, lambda path: None)(path) for path in files}


# What is swept over, as presets, since not every sampler goes with every searcher.
PRESETS = {
    "gdas": "defaults: [{override /sampler: gdas}, {override /deriver: best_of}]\nderiver: {samples: 4}",
    "softmax": "defaults: [{override /sampler: softmax}, {override /deriver: perturbation}]\nderiver: {tune_steps: 2}",
    "score": "defaults: [{override /sampler: score_function}]\nsampler: {control: true}",
    "difference": "defaults: [{override /sampler: softmax}, {override /searcher: second_order}]",
}
BATCH_NORM = {"batch_norm": "space: {arguments: {batch_norm: true}}"}  # which on a CPU is not to train the same


@pytest.fixture
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The arguments of a run of each."""
    presets = {**PRESETS, **BATCH_NORM}
    root = tmp_path_factory.mktemp("presets")
    (root / "experiment").mkdir()
    for name, text in presets.items():
        (root / f"experiment/{name}.yaml").write_text(f"# @package _global_\n{text}\nname: {name}\n")
    return ("-m", f"hydra.searchpath=[file://{root}]", *SETTINGS, f"experiment={','.join(presets)}")


@pytest.mark.long  # tests/runtime/test_distributed.py has the same of the stages, without the commands
def test_two_processes_leave_what_one_leaves(nas: Nas, tmp_path: Path, sweep: tuple[str, ...]) -> None:
    """Losses and logits of every step, and with them derived choices and weights."""
    alone = nas("run", *sweep, "hydra.sweep.dir=one")
    assert alone.code == 0
    ended = torchrun("-m", "nas.cli.run", *sweep, "hydra.sweep.dir=two", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    for once_an_epoch_or_run in ("examples/s", "Everything is in", "│ test accuracy"):
        assert ended.stdout.count(once_an_epoch_or_run) == alone.out.count(once_an_epoch_or_run) > 0
    assert ended.stderr.count("each of the 2 processes has its own batch norms") == 1
    for number, name in enumerate({**PRESETS, **BATCH_NORM}):
        one, two = (list(Path(runs).glob(f"{number}_*")) for runs in ("one", "two"))
        assert len(one) == len(two) == 1
        expected, found = left(one[0]), left(two[0])
        del expected[".job.json"]  # under torchrun, a job does not record how it ended
        assert expected.keys() == found.keys()
        assert (expected.pop("manifest.json")["processes"], found["manifest.json"]["processes"]) == (1, 2)
        assert found.pop("manifest.json")["status"] == "finished"
        for files in (expected, found):
            assert files.pop("export/metadata.json")["results"].items() <= files["result.json"].items()
        assert len(expected["metrics.jsonl"]) == 10
        if name in PRESETS:
            assert_close(expected, found, name)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_batch_norms_see_whole_batches_on_gpus(nas: Nas, tmp_path: Path) -> None:
    """The quickstart's space, made of batch norms: in an epoch of 3 steps an architecture trains as in one process."""
    settings = (*TINY, "runtime.device=cuda", "search.epochs=1", "retrain.epochs=1", "tracker=jsonl")
    assert nas("run", *settings, "hydra.run.dir=one").code == 0
    ended = torchrun("-m", "nas.cli.run", *settings, "hydra.run.dir=two", cwd=tmp_path, gpus=True)
    assert ended.returncode == 0, ended.stderr
    assert "warning: " not in ended.stderr
    one, two = (left(Path(name)) for name in ("one", "two"))
    for expected, found in zip(one["metrics.jsonl"], two["metrics.jsonl"], strict=True):
        assert found["weights/loss"] == pytest.approx(expected["weights/loss"], abs=1e-3)
    assert two["search/checkpoint.pt"]["supernet"].keys() == one["search/checkpoint.pt"]["supernet"].keys()


@pytest.mark.long
def test_a_mistake_is_told_once_and_leaves_nothing(tmp_path: Path) -> None:
    ended = torchrun("-m", "nas.cli.search", *SETTINGS, "search.batch_size=15", "hydra.run.dir=runs/two", cwd=tmp_path)
    assert ended.returncode != 0
    assert ended.stderr.count("error: ") == 1, ended.stderr
    assert (
        "error: search.batch_size is 15, which 2 processes cannot share equally; set search.batch_size to a multiple "
        "of 2, e.g. 16\n" in ended.stderr
    )
    assert "exitcode  : 2" in ended.stderr  # as torchrun reports it
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_goes_whichever_process_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    above = absent(tmp_path / "runs" / "two")
    for there in ("runs/two", "runs", "."):  # what the other process has left of it
        (tmp_path / there).mkdir(parents=True, exist_ok=True)
        remove_if_empty(tmp_path / "runs" / "two", above=above)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "other").mkdir(parents=True)
    remove_if_empty(tmp_path / "runs" / "two", above=above)
    assert (tmp_path / "runs" / "other").exists()


@pytest.mark.long
def test_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    """It is told what failed, and not that the first process misses the second."""
    broken = "space.factory=group_norms.FailsInTheSecond"
    ended = torchrun("-m", "nas.cli.search", *SETTINGS, broken, "hydra.run.dir=two", cwd=tmp_path)
    assert ended.returncode != 0
    assert "RuntimeError: the second process is broken" in ended.stderr
    assert "Connection closed" not in ended.stderr
    assert ended.stderr.count("error: a step of the search fails") == 1
    assert not (tmp_path / "two" / "result.json").exists()


@pytest.mark.long
def test_a_signal_to_one_stops_all_and_one_can_go_on(nas: Nas, tmp_path: Path) -> None:
    settings = (*SETTINGS, "space.factory=group_norms.StoppedInTheSecond")
    ended = torchrun("-m", "nas.cli.search", *settings, "hydra.run.dir=two", cwd=tmp_path)
    assert ended.returncode != 0
    assert (
        ended.stderr.count("error: ")
        == ended.stderr.count("error: stopped by SIGTERM, all that was done is saved")
        == 1
    )
    stopped = left(tmp_path / "two")
    assert stopped["manifest.json"]["status"] == "interrupted"
    assert (stopped["search/checkpoint.pt"]["epoch"], stopped["search/checkpoint.pt"]["step"]) == (1, 2)
    assert stopped["search/checkpoint.pt"]["weights_meter"]["examples"] == 2 * 16  # of both processes

    assert nas("search", "resume=two", "allow_targets=[group_norms]", "may_change=[processes]").code == 0
    assert nas("search", *settings, "hydra.run.dir=one").code == 0
    one, two = left(tmp_path / "one"), left(tmp_path / "two")
    for file in ("metrics.jsonl", "genotype.json", "result.json", "search/checkpoint.pt"):
        assert_close(one[file], two[file], file)


@pytest.mark.long
def test_a_run_of_which_one_process_is_killed_ends_as_it_would_have(nas: Nas, tmp_path: Path) -> None:
    """torchrun starts it anew by itself. Bit for bit, see scripts/torture: here one process does the same alone."""
    settings = (*SETTINGS, "search.epochs=2", "saving.every_steps=1")
    arguments = (*settings, "space.factory=group_norms.DiesOnce", "hydra.run.dir=killed")
    ended = torchrun("--max-restarts=1", "-m", "nas.cli.search", *arguments, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "(exitcode: -9)" in ended.stderr
    assert nas("search", *settings, "hydra.run.dir=whole").code == 0
    killed, whole = left(tmp_path / "killed"), left(tmp_path / "whole")
    assert len(killed["manifest.json"]["resumed"]) == 1
    assert [line["epoch"] for line in killed["metrics.jsonl"]] == [0, 1]
    for file in ("metrics.jsonl", "genotype.json", "result.json", "search/checkpoint.pt"):
        assert_close(whole[file], killed[file], file)


def test_commands_that_one_process_does_are_refused_to_several(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_several("nas-export")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="nas-export works in one process, got 2; start it without torchrun"):
        refuse_several("nas-export")


def test_a_sweep_that_optimises_is_refused_to_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_of_jobs, "optimises", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a sweep that optimises works in one process, got 2; start it without tor"):
        sweep_of_jobs.prepare(OmegaConf.create(), "nas-run")


def test_a_process_of_several_is_left_at_once_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    with left_at_once():
        pass
    assert left == []  # alone it ends as any program does
    monkeypatch.setenv("WORLD_SIZE", "2")
    for code in (None, 0, 2, 143):
        with left_at_once():
            sys.exit(code)
    with pytest.raises(RuntimeError, match="not ours"), left_at_once():
        raise RuntimeError("not ours")
    assert left == [0, 0, 2, 143]
