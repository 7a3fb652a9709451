"""Choices that have no part in what a model returns."""

import pytest
import torch
from torch import nn

from nas.supernet.choice import Choice
from nas.supernet.idle_choices import idle_choices, warn_of_idle_choices


def choice(key=None):
    return Choice({"wide": nn.Linear(3, 3), "none": nn.ReLU(inplace=True)}, key=key)


class Model(nn.Module):
    """Runs `used`, and `other` in a way of its own."""

    def __init__(self, run, **keys):
        super().__init__()
        self.used, self.other, self.norm = choice(**keys), choice(**keys), nn.BatchNorm1d(3)
        self.run = run

    def forward(self, x):
        return self.norm(self.used(x)) + self.run(self.other, x)


def without_gradients(other, x):
    with torch.no_grad():
        return other(x)


@pytest.mark.parametrize(
    ("run", "idle"),
    [
        (lambda other, x: other(x), []),
        (lambda other, x: other(other(x)), []),
        (lambda other, x: 0 * other(x), []),  # a number like another
        (lambda other, x: x, ["other"]),
        (lambda other, x: other(x).detach(), ["other"]),
        (without_gradients, ["other"]),
        (lambda other, x: other(x) if other.training else x, []),
        (lambda other, x: x if other.training else other(x), ["other"]),
        (lambda other, x: other(x) if torch.rand(()) > 0.5 else x, []),  # in the second pass
    ],
)
def test_choices_that_no_gradient_comes_from_are_idle(run, idle):
    model, inputs = Model(run), -torch.ones(2, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert idle_choices(model, inputs) == idle
    assert (inputs == -1).all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.used.gate is None


def test_one_of_several_with_a_key_is_enough():
    assert idle_choices(Model(lambda other, x: x, key="both"), torch.ones(2, 3)) == []


def test_choices_inside_candidates_are_reached():
    model = Choice({"deep": nn.Sequential(choice("inner"), nn.Tanh()), "flat": nn.Identity()}, key="outer")
    assert idle_choices(model, torch.ones(2, 3)) == []


def test_nothing_is_known_of_a_model_that_fails():
    assert idle_choices(Model(lambda other, x: x @ x), torch.ones(2, 3)) == []


@pytest.mark.parametrize(
    ("run", "told"), [(lambda other, x: other(x), ""), (lambda other, x: x, "the choice other has")]
)
def test_idle_choices_are_warned_of(run, told, capsys):
    warn_of_idle_choices(Model(run), torch.ones(2, 3))
    said = capsys.readouterr().err
    assert told in said
    assert bool(said) == bool(told)
