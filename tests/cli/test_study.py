"""nas-study: what it leaves, that it goes on, and what it refuses."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli.conftest import TINY, Outcome
from hydra.core.override_parser.overrides_parser import OverridesParser

from nas.cli.stages.setup import Setup
from nas.cli.sweep import Job
from nas.cli.task import register
from nas.errors import ConfigError, OutputError
from nas.settings.allowed_targets import allowed
from nas.storage import run_directory
from nas.studies.collected import Run
from nas.studies.plan import from_plain
from nas.studies.statistics import rank_agreement

pytest.importorskip("scipy", reason="needs scipy")
Nas = Callable[..., Outcome]
STUDY: dict[str, Any] = {
    "name": "mine",
    "common": [*TINY, "search.epochs=1", "tracker=jsonl", "search.gap_batches=1"],
    "methods": {"gdas": "sampler=gdas", "broken": "search.arch_every=0"},
    "seeds": [3],
}


def write(study: dict[str, Any]) -> None:
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_study_that_is_not_named_is_asked_for(nas: Nas) -> None:
    outcome = nas("study")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (
        2,
        "nas-study: error: the following arguments are required: study",
    )


def test_a_study(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "commit", lambda: "abc")
    write(STUDY)
    ended = nas("study", "study.yaml")
    assert ended.code == 2
    assert "error: job 1 (search.arch_every=0, seed=3): search.arch_every must be at least 1" in ended.err
    home = Path("runs/mine")
    known = read(home / "study.json")
    runs = [(run["method"], run["seed"], run["status"]) for run in known["runs"]]
    assert runs == [("gdas", 3, "finished"), ("broken", 3, "failed")]
    result = read(home / "gdas" / "seed_3" / "result.json")
    assert known["runs"][0]["value"] == result["discretisation_gap"]["recalibrated"]
    assert known["runs"][0]["genotype"] == result["genotype"]
    assert "one run has no interval" in ended.out
    assert (home / "study.md").read_text() in ended.out

    write(STUDY | {"common": " ".join(STUDY["common"]), "confounders": "one machine for gdas"})  # says the same
    again = nas("study", "study.yaml")
    assert "job 0 (sampler=gdas, seed=3) has finished before" in again.out
    assert "job 1 (search.arch_every=0, seed=3) has failed before" in again.err

    write(STUDY | {"seeds": [3, 4]})
    assert "begun with other settings: seeds=[3, 4] (was [3])" in nas("study", "study.yaml").err
    write(STUDY | {"engine": "hydra/launcher=basic"})
    monkeypatch.setattr(run_directory, "commit", lambda: "another")
    assert "begun with the code of commit abc, got another" in nas("study", "study.yaml").err
    reported = nas("study", "study.yaml", "--report-only")
    assert (reported.code, reported.err) == (0, "")
    assert "Code: abc. This report: another." in reported.out
    assert read(home / "study.json") == known | {"reported_by": "another"}
    (home / "gdas" / "seed_3" / "config.yaml").write_text("{")
    reported = nas("study", "study.yaml", "--report-only")
    assert (reported.code, reported.err.count("\n")) == (0, 1)
    assert "warning: gdas, seed 3: " in reported.err
    assert "| all settings are given | no | 0 of 2 runs left a config.yaml |" in reported.out
    nothing = nas("study", "study.yaml", "--report-only", "--out", "nowhere")
    assert (nothing.code, Path("nowhere").exists()) == (2, False)
    assert "nowhere holds no job of a study" in nothing.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {"gdas": "sampler=gda"}}, "sampler=gda is not an option of sampler"),
        ({"retrain": {"seeds": [0], "settings": "nothing=1"}}, "retrain: nothing is not a setting"),
        ({"retrain": {"seeds": [0], "settings": "retrain.epochs=0"}}, "retrain.epochs must be at least 1, got 0"),
        ({"engine": "hydra/launcher=ray_local"}, "pip install 'gumbel-nas[ray]'"),
        (
            {"common": [*TINY, "search.gap_batches=0"]},
            "compared by scores inside their supernets, got search.gap_batches=0",
        ),
        ({"benchmark": {"table": "absent.csv", "column": "cifar10_test_200"}}, "absent.csv cannot be read"),
    ],
)
def test_mistakes_are_found_before_the_first_job(change: dict[str, Any], message: str, nas: Nas) -> None:
    write(STUDY | change)
    ended = nas("study", "study.yaml", "--out", "out")
    assert (ended.code, message in ended.err, ended.err.count("\n")) == (2, True, 1), ended.err
    assert not list(Path("out").rglob("manifest.json"))


def test_a_study_in_which_no_job_has_begun_can_be_corrected(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    write(STUDY | {"methods": {"gdas": "sampler=gdass"}})
    assert nas("study", "study.yaml", "--out", "out").code == 2
    write(STUDY | {"methods": {"gdas": "search.arch_every=0"}})
    assert "search.arch_every must be at least 1" in nas("study", "study.yaml", "--out", "out").err
    write(STUDY | {"methods": {"gdas": "search.arch_every=-1"}})
    assert "begun with other settings" in nas("study", "study.yaml", "--out", "out").err
    Path("out/begun.json").write_text('{"x": 1}')
    assert "begun.json is damaged, so nothing tells which study" in nas("study", "study.yaml", "--out", "out").err


@pytest.mark.parametrize("place", ["study.yaml", "/proc/nothing"])
def test_a_directory_that_cannot_be_one_is_one_line(place: str, nas: Nas) -> None:
    write(STUDY)
    told = nas("study", "study.yaml", "--out", place)
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert f"{place} cannot be written (" in told.err
    assert "or --out of a study, to a directory you can write to" in told.err


def test_paths_of_a_study_are_those_of_a_command_line(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    study = importlib.import_module("nas.cli.study")
    given: dict[str, Any] = {"common": "data.root=~/d", "methods": {"a": ["~regulariser", "space.weights='~/a b'"]}}
    given |= {"benchmark": {"table": "~/t.csv", "column": "c"}, "retrain": {"seeds": [0], "settings": "x=~/r"}}
    plan = study.as_on_command_line(from_plain(STUDY | given))
    assert (plan.common, plan.benchmark.table) == (("data.root=/home/me/d",), "/home/me/t.csv")
    assert plan.retrain.settings == ("x=/home/me/r",)
    assert plan.methods == {"a": ("~regulariser", 'space.weights="/home/me/a b"')}
    write(STUDY | {"common": "data.root="})
    told = nas("study", "study.yaml", "--out", "out")
    assert (told.code, "error: data.root is empty, expected a path" in told.err) == (2, True)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "word", ["search.epochs=2", "data.train=24", "+x=1", "dry_run=true", "hydra.sweep.dir=x", "hydra/sweeper=optuna"]
)
def test_settings_of_jobs_are_no_engine(word: str, nas: Nas) -> None:
    write(STUDY)
    told = nas("study", "study.yaml", "--out", "out", word)
    assert (told.code, f"error: {word} is no setting of an engine, expected hydra/launcher=" in told.err) == (2, True)
    assert not Path("out").exists()


def test_classes_of_ones_own_that_the_study_allows(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found before the searches, and built again for the supernets of the report."""
    study = importlib.import_module("nas.cli.study")
    plan = from_plain(
        STUDY
        | {"common": "allow_targets=[mine]", "methods": {"sharp": "sampler=sharp", "none": "allow_targets=[]"}}
        | {
            "benchmark": {"table": "t", "column": "c"},
            "supernet": {"cells": 2, "batches": 1},
            "retrain": {"seeds": [0]},
        }
    )
    Path("mine/sampler").mkdir(parents=True)
    Path("mine/sampler/sharp.yaml").write_text("_target_: mine.Sharp")
    register()
    with pytest.raises(ConfigError, match="retrain: sampler=sharp is not an option"):
        study.compose_retraining(plan, [])
    study.compose_retraining(plan, ["hydra.searchpath=[file://mine]"])

    # A file that anybody may have written.
    Path("config.yaml").write_text("allow_targets: [anything]\nresume: null\ndata: {factory: os.system}\n")
    plan = replace(plan, engine=("hydra.searchpath=[file://mine]",))
    built = []
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(Path.cwd())])
    monkeypatch.setattr(Setup, "from_config", lambda cfg: built.append((allowed(cfg), cfg.benchmark.table)) or 1 / 0)
    for method, found in (("none", False), ("sharp", True)):
        with pytest.raises(ZeroDivisionError):
            study.supernet_agreement(plan, Run(method, 3, Path(), "finished"), None)
        assert (str(Path.cwd()) in sys.path) == found
    assert built == [([], str(Path("t").absolute())), (["mine"], str(Path("t").absolute()))]


def test_a_damaged_comparison_of_a_supernet_is_measured_again() -> None:
    whole = importlib.import_module("nas.cli.study_supernet").whole
    one = rank_agreement([1.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    constant = rank_agreement([1.0, 1.0], [1.0, 2.0])  # has no correlations
    good = {"recalibrated": one, "as trained": constant}
    assert whole(good)
    assert whole(json.loads(json.dumps(good)))
    for damage in ({"kendall": "x"}, {"precision_at": []}, {"precision_at": {"1": "x"}}, {"spearman": [1]}):
        assert not whole(good | {"recalibrated": one | damage}), damage
    assert not whole({})
    assert not whole({"recalibrated": one})


def test_a_job_that_leaves_no_record_is_not_passed_over(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OutputError("the disk is full", fix="free some space")

    monkeypatch.setattr(Job, "record", full)
    write(STUDY)
    ended = nas("study", "study.yaml", "--out", "out")
    assert (ended.code, Path("out/study.json").exists()) == (2, False)
    assert "error: the sweep could not begin: the disk is full; free some space" in ended.err


def test_a_retraining_finds_its_genotype_in_any_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = importlib.import_module("nas.cli.study")
    launched: list[list[str]] = []
    monkeypatch.setattr(study, "launch_jobs", lambda *given, first: launched.extend(given[2]))
    home = tmp_path / 'a "b" \\'
    (home / "gdas" / "seed_3").mkdir(parents=True)
    (home / "gdas" / "seed_3" / ".job.json").write_text('{"number": 0, "status": "finished"}')
    (home / "gdas" / "seed_3" / "genotype.json").touch()
    plan = from_plain(STUDY | {"methods": {"gdas": ""}, "retrain": {"seeds": [0]}})
    study.launch_retraining(plan, home, [], argparse.Namespace(debug=False))
    (given,) = OverridesParser.create().parse_overrides([next(one for one in launched[0] if "genotype" in one)])
    assert given.value() == str(home / "gdas" / "seed_3" / "genotype.json")


def test_two_processes_on_one_study(nas: Nas) -> None:
    write(STUDY)
    study = importlib.import_module("nas.cli.study")
    with study.held(Path("out").absolute()):
        told = nas("study", "study.yaml", "--out", "out").err
        assert "is being written by another process" in told
        assert "wait for it, or set --out to another" in told


@pytest.mark.long
def test_a_study_that_was_moved_goes_on_and_its_engine_may_change(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "commit", lambda: "abc")
    write(STUDY | {"methods": {"gdas": "sampler=gdas"}, "retrain": {"seeds": [0]}, "engine": "runtime.threads=1"})
    assert nas("study", "study.yaml", "--out", "one").code == 0
    value = read(Path("one/study.json"))["runs"][0]["value"]
    Path("one").rename("two")
    moved = nas("study", "study.yaml", "--out", "two", "runtime.threads=2")
    assert (moved.code, moved.err) == (0, "")
    assert moved.out.count("has finished before") == 2
    assert read(Path("two/study.json"))["runs"][0]["value"] == value

    genotype = Path("two/gdas/seed_3/genotype.json")
    genotype.write_text(genotype.read_text().replace('"nor_conv_3x3"', '"x"').replace('"skip_connect"', '"none"'))
    other = nas("study", "study.yaml", "--out", "two")
    assert (other.code, "holds another genotype than the given one, e.g. cell/" in other.err) == (2, True)
    assert read(Path("two/study.json"))["runs"][0]["value"] is None
