"""Evaluation mode for a while, and modules whose own `train` does more than set modes."""

import functools

import pytest
import torch
from torch import nn

import nas
from nas.runtime.modes import evaluating, evaluation_mode
from nas.supernet.choice import Choice
from nas.supernet.every_candidate import run_every_candidate
from nas.supernet.undisturbed import undisturbed
from nas.training.loop import TrainingStep
from nas.training.task import Classification
from nas.training.trial_training import try_small


class Merging(nn.Linear):
    """Has its update merged into its weight in evaluation mode, as LoRA layers have."""

    def __init__(self, inputs=3, outputs=3):
        super().__init__(inputs, outputs, bias=False)
        self.update, self.merged = nn.Parameter(torch.ones(outputs, inputs)), False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += self.update.data * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) + (0 if self.merged else x @ self.update.T)


CONTEXTS = {
    "evaluation": evaluation_mode,
    "undisturbed": functools.partial(undisturbed, seed=0),
    "evaluating": evaluating,
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_modules_get_their_modes_by_their_own_train(context):
    model = nn.Sequential(Merging(), nn.Sequential(nn.Dropout(), Merging()), nn.BatchNorm1d(3).eval())
    with CONTEXTS[context](model):
        assert not any(module.training for module in model.modules())
        assert model[0].merged
        assert model[1][1].merged
    assert [module.training for module in model.modules()] == [True, True, True, True, True, False]
    assert not model[0].merged
    assert not model[1][1].merged


@pytest.mark.parametrize("part", [0, 1])
def test_parts_in_another_mode_than_the_model_keep_it(part):
    model = nn.Sequential(Merging(), Merging()).eval()
    model[part].train()
    with evaluation_mode(model):
        pass
    assert [module.training for module in model.modules()] == [False, part == 0, part == 1]
    assert [layer.merged for layer in model] == [part == 1, part == 0]


def test_every_candidate_runs_in_evaluation_mode_for_a_while():
    model = nn.Sequential(Choice({"a": Merging(), "b": Merging()}))
    run_every_candidate(model, torch.ones(1, 3), lambda part, run: run())
    assert [one.merged for one in model[0].candidates] == [False, False]


def test_a_network_that_merges_weights_in_evaluation_mode_saves_all():
    batch = torch.randn(8, 3), torch.arange(8) % 3
    try_small(Merging, batch, task=Classification(), step=TrainingStep())


def in_evaluation():
    return nn.Sequential(Merging(), nn.Tanh()).eval()


def test_weights_are_loaded_in_the_mode_in_which_they_were_saved(tmp_path):
    examples = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
    settings = {"epochs": 1, "batch_size": 8, "progress": False, "device": "cpu"}
    run = tmp_path / "run"
    net = nas.retrain(in_evaluation, None, examples, test=examples, directory=run, **settings)
    assert nas.evaluate(run, examples, allow=[in_evaluation], device="cpu")["test_loss"] == net.result["test_loss"]

    model = nn.Sequential(Merging(), Choice({"tanh": nn.Tanh(), "relu": nn.ReLU()}))
    found = nas.search(model, examples, **settings, gap_batches=1)
    still = {"optim": functools.partial(torch.optim.SGD, lr=0.0), "start": "supernet"} | settings
    one, other = (nas.retrain(model.train(mode), found, examples, **still).network for mode in (True, False))
    torch.testing.assert_close(one(examples[0]), other(examples[0]))
