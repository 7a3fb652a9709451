"""What a trial changes comes back, wherever an object keeps it."""

import contextlib
from collections import Counter, OrderedDict, deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nas.training.put_back import all_put_back


class Average:
    """A helper as people write it: an object with numbers, without a state_dict."""

    def __init__(self):
        self.value, self.tensor, self.array = 0.5, torch.ones(2), np.ones(2)

    def move(self):
        self.value, self.array[0] = 1.5, 7
        self.tensor.add_(1)

    def as_it_was(self):
        return self.value == 0.5 and self.tensor.tolist() == self.array.tolist() == [1, 1]


HOLDERS = {
    "an attribute": lambda one: one,
    "a list": lambda one: [one],
    "a dict in a dict": lambda one: {"a": OrderedDict(b=one)},
    "an object": lambda one: SimpleNamespace(inner=one),
    "a deque": lambda one: deque([one], maxlen=1),
}


@pytest.mark.parametrize("kind", [Average, nn.Module])
@pytest.mark.parametrize("holder", HOLDERS)
def test_an_object_in_an_object_comes_back(kind, holder):
    owner, average = kind(), Average()
    owner.held = HOLDERS[holder](average)
    with contextlib.suppress(RuntimeError), all_put_back([owner], device=torch.device("cpu")):
        average.move()
        raise RuntimeError
    assert average.as_it_was()


@pytest.mark.parametrize(
    "held", [{1, 2}, [1, 2], deque([1, 2], maxlen=2), {"a": 1}, Counter("ab")], ids=lambda held: type(held).__name__
)
def test_containers_keep_what_they_held(held):
    owner, before = SimpleNamespace(held=held), type(held)(held)
    with all_put_back([owner], device=torch.device("cpu")):
        held.clear()
    assert owner.held is held
    assert held == before


def test_modules_and_optimisers_in_plain_objects_come_back():
    layer = nn.BatchNorm1d(2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    owner = SimpleNamespace(layer=layer, optimizer=optimizer)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with all_put_back([owner], device=torch.device("cpu")):
        layer(torch.randn(4, 2)).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert layer.weight.grad is None
    assert not optimizer.state


class Around(torch.optim.Optimizer):
    """An optimiser around another one, as Lookahead is, with counts of its own."""

    def __init__(self, params):
        self.inner, self.counts = torch.optim.SGD(params, lr=0.1, momentum=0.9), {"steps": 0}
        super().__init__(self.inner.param_groups, {})
        self.param_groups = self.inner.param_groups

    def step(self, closure=None):
        self.inner.step(closure)
        self.counts["steps"] += 1
        self.made = True


def test_an_optimiser_in_an_optimiser_comes_back():
    weight = nn.Parameter(torch.ones(2))
    optimizer = Around([weight])
    with all_put_back([optimizer], device=torch.device("cpu")):
        weight.sum().backward()
        optimizer.step()
    assert not optimizer.inner.state
    assert optimizer.counts == {"steps": 0}
    assert not hasattr(optimizer, "made")
