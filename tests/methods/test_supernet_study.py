"""scripts/supernet_study: what compare_estimators measures in the supernet of a search."""

import math
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from nas.cli.stages import for_report
from nas.cli.stages.search import SearchStage
from nas.cli.stages.setup import Setup
from nas.settings import configuration, schemas
from nas.storage.metrics_log import JsonLines

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def estimators(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from supernet_study import estimators

    return estimators


@pytest.fixture
def checkpoint(tmp_path):
    """Of a search of one epoch on made-up images."""
    schemas.register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
        overrides = [
            "data=synthetic",
            "data.train=32",
            "data.test=4",
            "data.classes=2",
            "data.size=8",
            "search.epochs=1",
        ]
        sizes = ["search.batch_size=8", "search.gap_batches=0", "space.channels=4", "space.cells=1", "tracker=jsonl"]
        cfg = compose("search", [*overrides, *sizes, "sampler=score_function"], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    setup = Setup.from_config(cfg)
    with setup.open(tmp_path) as out, JsonLines(directory=out.path) as tracker:
        SearchStage(setup).run(out, tracker)
    return tmp_path / "search" / "checkpoint.pt"


def test_a_checkpoint_is_opened_in_a_process_that_has_run_no_command(estimators, checkpoint, monkeypatch):
    GlobalHydra.instance().clear()
    known = {name: node for name, node in ConfigStore.instance().repo.items() if not name.endswith("_schema.yaml")}
    monkeypatch.setattr(ConfigStore.instance(), "repo", known)
    monkeypatch.setattr(for_report, "defaults", for_report.defaults.__wrapped__)  # otherwise composed once a process
    assert estimators.opened(checkpoint).state.epoch == 1


def test_main_effects_of_an_additive_loss(estimators):
    generator = torch.Generator().manual_seed(0)
    true, probs = torch.randn(3, 4, generator=generator).double(), torch.rand(3, 4, generator=generator).double()
    probs /= probs.sum(dim=1, keepdim=True)
    drawn = torch.randint(4, (300, 3), generator=generator)
    found, explained = estimators.main_effects(drawn, 5 + true[torch.arange(3), drawn].sum(dim=1), probs)
    assert torch.allclose(found, true - (true * probs).sum(dim=1, keepdim=True), atol=1e-8)
    assert explained == pytest.approx(1)


def test_measures_of_known_gradients(estimators):
    true = torch.tensor([3.0, 4.0], dtype=torch.float64)
    noise = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0)).double()
    found = estimators.compared(2 * true + noise, true)
    assert found["cosine"] == pytest.approx(1, abs=1e-4)
    assert found["length_over_true"] == pytest.approx(2, abs=0.01)
    assert found["length_over_noise"] == pytest.approx(10 / (2 / 100_000) ** 0.5, rel=0.01)


def test_agreement_of_effects_with_a_table(estimators):
    accuracy = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    assert estimators.agreement(-accuracy, accuracy) == {
        "correlation": pytest.approx(1), "edges_with_the_best_one": 2, "edges_in_order": 2, "edges": 2
    }  # fmt: skip
    changed = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -3.0, -1.0]])
    assert estimators.agreement(changed, accuracy)["edges_with_the_best_one"] == 1


def test_a_search_is_looked_at_where_it_stands(estimators, checkpoint):
    stage = estimators.opened(checkpoint)
    before = stage.state.arch.logits.detach().clone()
    said = []
    cases = [
        case for case in estimators.CASES if case.name in ("gdas sampled", "softmax", "score_function, 2 networks")
    ]
    found = estimators.study(stage, draws=60, steps=4, seed=0, cases=cases, say=said.append)
    assert found["epoch"] == 1
    assert torch.equal(stage.state.arch.logits, before)
    assert [row["estimator"] for row in found["rows"]] == [case.name for case in cases]
    assert all(-1 <= row["cosine"] <= 1 and row["seconds"] > 0 for row in found["rows"])
    assert math.isfinite(found["explained"])
    assert len(said) == 2 + len(found["rows"])
    for row in found["effects"].values():
        assert len(row) == 5
