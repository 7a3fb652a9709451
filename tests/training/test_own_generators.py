"""Random generators that a user's objects hold: found, saved and restored."""

import functools
import random

import numpy as np
import pytest
import torch
from torch import nn

from nas.training.own_generators import OwnGenerators

OF_THE_MODULE = random.Random(0)


def drawing(augment, generator):
    return generator


class Holder:
    def __init__(self, generator):
        self._generator = generator

    def draw(self):
        return self._generator


def in_a_module(generator):
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    model[1].noise = generator
    return model


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (torch.Generator().manual_seed(1), lambda generator: torch.rand((), generator=generator)),
        (np.random.default_rng(1), lambda generator: generator.standard_normal()),
        (np.random.Generator(np.random.MT19937(1)), lambda generator: generator.standard_normal()),
        (np.random.RandomState(1), lambda generator: generator.normal()),
        (random.Random(1), lambda generator: generator.gauss()),
    ],
)
def test_a_generator_goes_on_where_its_state_was_saved(generator, draw, tmp_path):
    draw(generator)  # of a pair of normal numbers, whose other one is a part of the state
    generators = OwnGenerators({"augment": Holder(generator)})
    torch.save(generators.state_dict(), tmp_path / "state.pt")
    following = [draw(generator) for _ in range(700)]
    generators.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draw(generator) for _ in range(700)] == following


@pytest.mark.parametrize(
    ("hold", "place"),
    [
        (Holder, "model.generator"),
        (lambda generator: Holder(generator).draw, "model.generator"),
        (lambda generator: functools.partial(drawing, generator=generator), "model.generator"),
        (lambda generator: lambda inputs, _: generator, "model.generator"),
        (lambda generator: [Holder({"noise": generator})], "model.0.generator.noise"),
        (in_a_module, "model.1.noise"),
    ],
)
def test_generators_are_found_wherever_they_are_held(hold, place):
    assert list(OwnGenerators({"model": hold(torch.Generator()), "none": None}).state_dict()) == [place]


def test_generators_that_a_function_names_are_found_and_others_are_not():
    found = OwnGenerators(
        {"augment": lambda inputs, generator: OF_THE_MODULE.random(), "other": lambda: random.random()}
    )
    assert list(found.state_dict()) == ["augment.OF_THE_MODULE"]


def test_states_of_other_generators_are_left_out():
    generators = OwnGenerators({"augment": Holder(torch.Generator().manual_seed(1))})
    before = generators.state_dict()["augment.generator"]
    generators.load_state_dict({"augment.generator": "[3, [1], null]", "other": before})
    assert torch.equal(generators.state_dict()["augment.generator"], before)


def test_a_generator_that_a_step_replaces_or_makes_is_saved_and_one_that_is_not_there_yet_is_told(capsys):
    holder, other = Holder(random.Random(1)), Holder(None)
    generators = OwnGenerators({"network": holder, "task": other})
    holder._generator, other._generator = random.Random(2), np.random.default_rng(1)
    state, following = generators.state_dict(), holder.draw().random()
    assert list(state) == ["network.generator", "task.generator"]
    generators.load_state_dict(state)
    assert holder.draw().random() == following
    assert not capsys.readouterr().err
    other._generator = None
    generators.load_state_dict(state)
    assert "the random generator task.generator of the checkpoint is not there" in capsys.readouterr().err
