"""Hooks that freeze and unfreeze parts of a network, in runs that are stopped."""

import pytest
import torch
from torch import nn

import nas
from nas.training.frozen_parts import FrozenParts
from nas.training.hooks import Hook


class Unfreeze(Hook):
    """After the first epoch the first layer learns, and the norm keeps its statistics."""

    def __init__(self, *, stops=False):
        self.stops = stops

    def after_epoch(self, state):
        model = getattr(state, "network", None) or state.supernet
        if state.epoch == 1:
            model[0].requires_grad_(True)
            model[1].eval()

    def after_step(self, state):
        if self.stops and state.epoch == 2:
            raise RuntimeError("stopped")


def model():
    torch.manual_seed(0)
    choice = nas.Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()})
    return nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.BatchNorm1d(4), choice, nn.Linear(4, 2))


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_a_run_that_is_resumed_goes_on_with_what_a_hook_has_frozen(stage, tmp_path):
    data = torch.randn(32, 3, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2
    kept = {"saving": nas.storage.Checkpoints, "tracker": nas.storage.JsonLines}
    kept |= {"epochs": 3, "batch_size": 8, "device": "cpu", "progress": False}

    def run(name, **more):
        if stage == "search":
            return nas.search(model(), data, directory=tmp_path / name, **kept, **more).supernet.state
        chosen = nas.Genotype("custom", {"2": "relu"})
        return nas.retrain(model(), chosen, data, directory=tmp_path / name, **kept, **more).network.state_dict()

    whole = run("whole", hooks=[Unfreeze()])
    with pytest.raises(RuntimeError, match="stopped"):
        run("part", hooks=[Unfreeze(stops=True)])
    rest = run("part", hooks=[Unfreeze()], resume=True)
    assert whole["1.num_batches_tracked"] == (32 // 8 if stage == "retrain" else 32 // 2 // 8 * 2)
    assert all(torch.equal(value, rest[name]) for name, value in whole.items())
    assert not torch.equal(whole["0.weight"], model()[0].weight)


def test_what_is_built_otherwise_stays_so():
    """A run may go on with a model that freezes other parts from the start."""
    parts = FrozenParts(before := model())
    before[1].eval()
    now = model()
    now[0].requires_grad_(True)
    FrozenParts(now).load_state_dict(parts.state_dict())
    assert now[0].weight.requires_grad
    assert [part.training for part in now] == [True, False, True, True]
