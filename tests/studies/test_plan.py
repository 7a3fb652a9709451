"""What a study's YAML may say."""

from pathlib import Path
from typing import Any

import pytest

from nas.errors import ConfigError
from nas.studies.plan import MAY_CHANGE, differences, from_plain, read

PLAIN: dict[str, Any] = {
    "name": "mine",
    "common": "experiment=quickstart 'name=\"a b\"'",
    "methods": {"gdas": "sampler=gdas", "darts": ["sampler=softmax", "search.epochs=3"]},
    "seeds": [0, 7],
}


def test_jobs_are_methods_by_seeds() -> None:
    plan = from_plain(PLAIN)
    assert plan.common == ("experiment=quickstart", 'name="a b"')
    assert plan.jobs() == [
        ("gdas", 0, ["sampler=gdas", "seed=0"]),
        ("darts", 0, ["sampler=softmax", "search.epochs=3", "seed=0"]),
        ("gdas", 7, ["sampler=gdas", "seed=7"]),
        ("darts", 7, ["sampler=softmax", "search.epochs=3", "seed=7"]),
    ]


def test_a_table_is_looked_up_in_by_every_job() -> None:
    plan = from_plain(PLAIN | {"benchmark": {"table": 'a "b".csv', "column": "cifar10_test_200"}})
    assert plan.of_all()[:2] == [MAY_CHANGE, "experiment=quickstart"]
    assert plan.of_all()[-2:] == ["benchmark=nas_bench_201", r'benchmark.table="a \"b\".csv"']


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": [0]}, "seed is not a setting of a study"),
        ({"seeds": []}, "the study has no seeds"),
        ({"seeds": [0, 0]}, "expected different whole numbers"),
        ({"methods": {"a/b": "x=1"}}, "'a/b', expected a name that can be one of a directory"),
        ({"methods": {"random cell": "x=1"}}, "which is a baseline of every study"),
        ({"methods": {"gdas": {"sampler": "gdas"}}}, "methods.gdas is .* expected a text or a list of texts"),
        ({"common": "name='a"}, "quotes that are not closed"),
        ({"primary": ["gdas", "dart"]}, "primary names dart, which is no method of the study"),
        ({"methods": {"": "x=1"}}, "methods has '', expected a name that can be one of a directory"),
        ({"methods": {"a${seed}": "x=1"}}, "expected a name that can be one of a directory"),
        ({"methods": {"study.md": "x=1"}}, "expected a name that can be one of a directory"),
        ({"methods": {"a" * 300: "x=1"}}, "expected a name that can be one of a directory"),
        ({"seeds": 0}, "seeds is 0, expected different whole numbers"),
        ({"common": "++seed=3"}, r"common has \+\+seed=3, expected settings of a run other than seed, resume"),
        ({"methods": {"a": "hydra.sweep.dir=x"}}, "methods.a has hydra.sweep.dir=x"),
        ({"methods": {"a": "dry_run=true"}}, "methods.a has dry_run=true"),
        ({"methods": {"a": "-m"}}, "methods.a has -m"),
        ({"retrain": {"seeds": [0], "settings": "resume=auto"}}, "retrain has resume=auto"),
        ({"seeds": [-1, 1]}, "expected different whole numbers >= 0"),
        ({"tuning": ["gdas"]}, r"tuning is \['gdas'\], expected methods with device hours >= 0"),
        ({"tuning": {"gdas": None}}, "expected methods with device hours >= 0"),
        ({"tuning": {"gdas": -5}}, "expected methods with device hours >= 0"),
        ({"primary": ["gdas", "random cell"]}, "primary names random cell, which a benchmark gives"),
        ({"primary": ["gdas", "gdas"]}, "primary has 2 methods, expected the two to compare"),
        ({"command": "evaluate"}, "command is evaluate, expected search or run"),
        ({"command": "run", "retrain": {"seeds": [0]}}, "retrains already"),
        ({"supernet": {"cells": 5}}, "supernet is compared with a benchmark, got none"),
        ({"benchmark": {"table": "a.csv"}}, "benchmark lacks a setting"),
        ({"benchmark": {"table": "a.csv", "column": 3}}, "benchmark.column is 3, expected a text"),
    ],
)
def test_what_a_study_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_plain(PLAIN | change)


def test_a_text_is_one_confounder() -> None:
    plan = from_plain(PLAIN | {"confounders": "the number of epochs", "ablations": ["no warm-up", "no control"]})
    assert plan.confounders == ("the number of epochs",)
    assert plan.ablations == ("no warm-up", "no control")


def test_two_methods_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: mine\nseeds: [0]\nmethods:\n  gdas: sampler=gdas\n  gdas: sampler=softmax\n")
    with pytest.raises(ConfigError, match="the study has gdas twice"):
        read(path)


def test_differences_name_both_values() -> None:
    assert differences(PLAIN, PLAIN | {"seeds": [0]}) == ["seeds=[0] (was [0, 7])"]
    more = PLAIN | {"methods": PLAIN["methods"] | {"plain": None}}
    assert differences(PLAIN, more) == ["methods.plain=None (was not there)"]
