"""Python and the commands: the same defaults, the same jobs, the same bits."""

import functools
import inspect
import json

import pytest
import torch
from cli.conftest import TINY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import nas
from nas.api.arguments import deriver_of
from nas.data import Synthetic
from nas.methods import Argmax
from nas.settings import configuration, schemas
from nas.settings.building import described
from nas.settings.configuration import to_plain
from nas.settings.names import NAME, PARTIAL

SIZES = {"classes": 3, "train": 48, "test": 16}


@pytest.fixture(scope="module")
def settings():
    """What nas-run does without an argument."""
    schemas.register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
        cfg = compose("run", ["name=x"])
    OmegaConf.set_struct(cfg, False)
    return to_plain(cfg)


def defaults(function):
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def complete(node):
    """A description with the defaults of its signature, without whether it is a partial: how the same thing is spelt
    by a class and by a YAML that lists all settings."""
    return {name: value for name, value in node.items() if name not in (PARTIAL,)}


def spelt(thing):
    """As `complete`, of what Python has for a default."""
    if callable(thing) and not hasattr(thing, "estimator") and not hasattr(thing, "start"):
        function = thing.func if isinstance(thing, functools.partial) else thing
        known = inspect.signature(function).parameters
        given = thing.keywords if isinstance(thing, functools.partial) else {}
        return complete(described(thing)) | {
            name: parameter.default
            for name, parameter in known.items()
            if name not in given and parameter.default is not inspect.Parameter.empty
        }
    return described(thing)


def same(python, node):
    """Whether every setting of the YAML has the value that Python has."""
    found = spelt(python)
    return {
        name: (found.get(name), value) for name, value in complete(node).items() if not close(found.get(name), value)
    }


def close(one, other):
    return list(one) == list(other) if isinstance(one, tuple) and isinstance(other, list) else one == other


def test_the_numbers_of_a_search_have_one_default(settings):
    python = defaults(nas.search)
    assert {name: python[name] for name in settings["search"]} == settings["search"]
    assert python["seed"] == settings["seed"]


@pytest.mark.parametrize(
    "name",
    ["sampler", "temperature", "searcher", "monitor", "weight_optim", "arch_optim", "lr", "saving", "tracker"],
)
def test_the_parts_of_a_search_have_one_default(settings, name):
    assert same(defaults(nas.search)[name], settings[name]) == {}


def test_what_is_none_in_python_is_what_the_configuration_chooses(settings):
    python = defaults(nas.search)
    none = ("regulariser", "benchmark", "deriver", "task", "network", "augment", "classes", "image_size", "directory")
    assert [python[name] for name in none] == [None] * len(none)
    assert settings["regulariser"] == {}
    assert settings["benchmark"] is None
    assert settings["retrain"]["network"] == {}
    assert settings["task"][NAME] == "classification"
    assert settings["deriver"] == {NAME: "argmax", "exclude": []}
    assert python["device"] == settings["runtime"]["device"] == "auto"
    assert described(nas.runtime.Runtime()) | {NAME: "default"} == settings["runtime"] | {NAME: "default"}
    assert list(settings["formats"]) == list(defaults(nas.export)["formats"])


def test_the_settings_of_a_retraining_have_one_default(settings):
    python, node = defaults(nas.retrain), settings["retrain"]
    parts = ("optim", "lr", "network")
    assert {name: python[name] for name in node if name not in parts} == {
        name: value for name, value in node.items() if name not in parts
    }
    assert same(python["optim"], node["optim"]) == {}
    assert same(python["lr"], node["lr"]) == {}


@pytest.mark.parametrize(
    ("space", "made"), [("nas_bench_201", "NasBench201"), ("darts", "Darts"), ("mbconv", "MBConv")]
)
def test_a_space_has_the_operations_and_the_deriver_of_its_configuration(space, made):
    schemas.register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
        cfg = compose("run", ["name=x", f"space={space}"])
    OmegaConf.set_struct(cfg, False)
    python = getattr(nas.spaces, made)()
    configured = to_plain(cfg)
    assert described(python) == configured["space"]
    assert list(python.ops) == list(configured["space"]["ops"])
    assert described(deriver_of(python)) == configured["deriver"]


def test_the_same_settings_give_the_same_bits(nas, tmp_path):
    import nas as python

    command = nas("run", *TINY, "seed=3", "tracker=jsonl", "hydra.run.dir=command")
    assert command.code == 0, command.err
    data, space = Synthetic(**SIZES), python.spaces.NasBench201(channels=4, cells=1)
    kept = {"seed": 3, "device": "cpu", "tracker": python.storage.JsonLines, "progress": False}
    found = python.search(
        space,
        data,
        epochs=2,
        batch_size=8,
        gap_batches=2,
        weight_optim=functools.partial(python.api.SGD, lr=0.1),
        arch_optim=functools.partial(python.api.ADAM, lr=0.01),
        deriver=Argmax(exclude=["none"]),
        directory="found",
        **kept,
    )
    before = torch.get_rng_state()
    net = python.retrain(space, found.genotype, data, test=data, epochs=2, batch_size=16, directory="net", **kept)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.genotype.to_json() == (tmp_path / "command" / "genotype.json").read_text()
    for stage, directory, part in (
        ("search", "found", "supernet"),
        ("search", "found", "arch"),
        ("retrain", "net", "network"),
    ):
        ours, theirs = (
            torch.load(tmp_path / where / stage / "checkpoint.pt", weights_only=True)[part]
            for where in (directory, "command")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), part
    result = json.loads((tmp_path / "command" / "result.json").read_text())
    assert {name: net.result[name] for name in net.result} == {name: result[name] for name in net.result}
    loaded = python.load("net")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), net(x))
    assert python.evaluate("net", data)["test_loss"] == net.result["test_loss"]
    manifest = tmp_path / "found" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"failed"'))
    assert "was made in Python, expected one of a command; go on in Python" in nas("search", "resume=found").err
