"""Checkpoints hold buffers that are not in the state dict."""

import copy

import pytest
import torch
from torch import nn

from nas.methods.sampler import Softmax
from nas.methods.state import SearchState
from nas.runtime.buffers import restore_unsaved, unsaved
from nas.storage import checkpoint_file
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice
from nas.training.ema import Average
from nas.training.loop import RetrainState


class Moving(nn.Module):
    """A moving mean that takes another tensor's place in every step, and a cache that is made in the first one."""

    def __init__(self):
        super().__init__()
        self.choice = Choice({"linear": nn.Linear(3, 3), "same": nn.Identity()})
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mean", torch.zeros(3), persistent=False)
        self.register_buffer("cache", None, persistent=False)

    def step(self):
        self.mean = 0.9 * self.mean + torch.randn(3)
        self.cache = torch.arange(4)
        return self


def retraining():
    model = Moving()
    return model, RetrainState(model, torch.optim.SGD(model.parameters(), lr=0.1), Average(model, decay=0.9))


def searching():
    model = Moving()
    arch = ArchParams.from_model(model, generator=torch.Generator())
    return model, SearchState(
        supernet=model,
        arch=arch,
        weight_optim=torch.optim.SGD(model.parameters(), lr=0.1),
        arch_optim=torch.optim.Adam(arch.parameters()),
        generator=torch.Generator(),
        sampler=Softmax(),
        metric="accuracy",
    )


@pytest.mark.parametrize("make", [searching, retraining])
def test_a_checkpoint_holds_them(make, tmp_path):
    (model, state), (again, other) = make(), make()
    model.step()
    checkpoint_file.save(tmp_path / "checkpoint.pt", "search", state.state_dict())
    other.load_state_dict(checkpoint_file.load(tmp_path / "checkpoint.pt", "search"), source="here")
    assert torch.equal(again.mean, model.mean)
    assert torch.equal(again.cache, model.cache)
    assert unsaved(again).keys() == {"mean", "cache"}


def test_they_stay_the_same_tensors_where_they_can():
    model, again = Moving().step(), copy.deepcopy(Moving())
    there = again.mean
    restore_unsaved(again, unsaved(model))
    assert again.mean is there
    assert torch.equal(there, model.mean)
