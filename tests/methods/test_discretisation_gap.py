"""The discretisation gap through the commands: what is logged, and that measuring it changes nothing."""

import importlib
import json
import sys
from dataclasses import replace

import pytest
import torch
from cli.conftest import TINY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nas.cli.stages.search import SearchStage
from nas.cli.stages.setup import Setup
from nas.data.split import TensorSplit
from nas.data.synthetic import Synthetic
from nas.methods.best_of import BestOf
from nas.settings import configuration, schemas

# Twenty steps: five a level and an epoch.
STEPS = (*TINY, "data.train=80", "runtime.threads=1", "tracker=jsonl")
# Noise is drawn from torch's own generator in every forward pass.
NOISY = ("space=darts", "ops=s4", "space.cells=3", "space.steps=2", "retrain.network.cells=3")


def search(directory, *arguments, command="search"):
    """Returns the metrics of every epoch and the last checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"nas-{command}", *STEPS, f"hydra.run.dir={directory}", *arguments])
        importlib.import_module(f"nas.cli.{command}").main()
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    state = torch.load(directory / "search" / "checkpoint.pt", weights_only=True)
    del state["metrics"]  # the last line, times and all
    return lines, state


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def trained(line):
    """What the steps of an epoch gave, without the time they took."""
    return {
        name: value
        for name, value in line.items()
        if name.startswith(("weights/", "arch/", "probability/", "entropy/", "lr/"))
    }


@pytest.mark.parametrize(
    "space",
    [
        pytest.param((), id="gdas", marks=pytest.mark.long),
        pytest.param(("sampler=softmax",), id="softmax", marks=pytest.mark.long),
        pytest.param(NOISY, id="noise", marks=pytest.mark.long),
        pytest.param((*NOISY, "sampler=softmax"), id="both"),
    ],
)
def test_looking_at_the_gap_changes_nothing(space, tmp_path):
    lines, state = {}, {}
    for batches in (0, 2):
        lines[batches], state[batches] = search(tmp_path / str(batches), *space, f"search.gap_batches={batches}")
        del state[batches]["config"]
    assert [trained(line) for line in lines[0]] == [trained(line) for line in lines[2]]
    assert equal(state[0], state[2])  # weights, buffers, logits, optimisers, generators, genotype
    for line in lines[2]:
        assert {name for name in line if name.startswith("gap/")} == {
            "gap/relaxed", "gap/derived", "gap/recalibrated",
        }  # fmt: skip
    assert not any(name.startswith("gap/") for line in lines[0] for name in line)
    assert "discretisation_gap" not in json.loads((tmp_path / "0" / "result.json").read_text())


@pytest.mark.parametrize(
    "space", [pytest.param((), id="nas_bench_201", marks=pytest.mark.long), pytest.param(NOISY, id="darts")]
)
def test_the_deriver_changes_nothing_but_what_is_derived(space, tmp_path):
    lines, states, genotypes = {}, {}, {}
    derivers = {
        "of_the_space": (),
        "best_of": ("deriver=best_of", "deriver.samples=3", "deriver.batches=1"),
        "perturbation": ("deriver=perturbation", "deriver.batches=1", "deriver.tune_steps=1"),
    }
    for name, settings in derivers.items():
        lines[name], states[name] = search(tmp_path / name, *space, *settings, "search.gap_batches=0")
        del states[name]["config"]
        saved = json.loads((tmp_path / name / "genotype.json").read_text())
        genotypes[name] = states[name].pop("genotype")
        assert saved == genotypes[name]  # that of the end
        kept = [choice for choice in saved["choices"].values() if choice is not None]
        # As the space says: two edges into each of two nodes of two cells, or all six.
        assert len(kept) == (8 if space else 6)
        assert "none" not in kept  # the preset excludes it, too
    for name in ("best_of", "perturbation"):
        assert [trained(line) for line in lines[name]] == [trained(line) for line in lines["of_the_space"]]
        assert equal(states[name], states["of_the_space"])
        # Until the last epoch the proxy is what the space derives by.
        assert lines[name][0]["derived_parameters"] == lines["of_the_space"][0]["derived_parameters"]


def test_the_expensive_derivation_happens_once(tmp_path, monkeypatch):
    calls = []

    def judged(self, arch, judge):
        calls.append(judge.examples)
        return self.rule(arch)

    monkeypatch.setattr(BestOf, "judged", judged)
    search(tmp_path / "run", "deriver=best_of", "deriver.batches=2", "search.epochs=3")
    assert calls == [16]


def test_no_deriver_and_no_gap_reaches_the_test_split(tmp_path, monkeypatch):
    """A test split that cannot be read serves a search as well as any other."""
    load = Synthetic.load

    class Unreadable(TensorSplit):
        def batches(self, order, *, device):
            raise AssertionError("the test split was read")

        def subset(self, indices):
            raise AssertionError("the test split was read")

    def without_test(self):
        bundle = load(self)
        unreadable = Unreadable(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
        return replace(bundle, test=unreadable)

    monkeypatch.setattr(Synthetic, "load", without_test)
    search(tmp_path / "one", "deriver=best_of", "deriver.samples=2")
    search(tmp_path / "two", "deriver=perturbation_quick", "deriver.batches=1")


def test_judges_see_the_architecture_split_without_augmentation():
    schemas.register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
        cfg = compose("run", [*STEPS, "name=x", "data.flip=true", "data.crop_padding=2"])
    OmegaConf.set_struct(cfg, False)
    stage = SearchStage(Setup.from_config(cfg))
    _, arch_split = stage.setup.data.search_splits(weight_fraction=0.5, seed=0)
    spec = stage.setup.data.spec
    (raw, _) = next(arch_split.batches([torch.arange(40)], device=torch.device("cpu")))
    mean, std = torch.tensor(spec.mean)[:, None, None], torch.tensor(spec.std)[:, None, None]
    plain = {tuple(image.flatten().tolist()) for image in ((raw / 255 - mean) / std).half()}
    judge = stage.judge(5)
    seen = {tuple(image.flatten().tolist()) for images, _ in judge.validation for image in images.half()}
    assert len(seen) == 40
    assert seen == plain


def test_the_table_of_a_run_has_all_four_forms(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    lines, _ = search(tmp_path / "run", "search.gap_batches=4", command="run")
    gap = json.loads((tmp_path / "run" / "result.json").read_text())["discretisation_gap"]
    last = [line for line in lines if line["stage"] == "search"][-1]
    assert {f"gap/{name}": gap[name] for name in ("relaxed", "derived", "recalibrated")}.items() <= last.items()
    assert gap["examples"] == 32  # four batches of eight
    printed = capfd.readouterr().out
    for row in ("supernet as searched", "as the search left them", "re-estimated", "retrained, on the test split"):
        assert row in printed
    assert f"{gap['retrained_test']:.2%}" in printed


def test_a_negative_number_of_batches(tmp_path, capfd):
    with pytest.raises(SystemExit, match="2"):
        search(tmp_path / "run", "search.gap_batches=-1")
    assert capfd.readouterr().err == "error: search.gap_batches must be at least 0, got -1; set search.gap_batches=0\n"
