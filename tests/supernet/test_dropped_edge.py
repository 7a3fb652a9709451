"""Dropped edges whose outputs are not simply added."""

import copy

import pytest
import torch
from torch import nn

from nas.errors import SpaceError
from nas.supernet.choice import LEFT_OUT, Choice, Gate, choices, gates
from nas.supernet.dropped_edge import DroppedTensor, OutputForm, settle
from nas.supernet.freezing import freeze


class Noisy(nn.Module):
    """A batch norm and dropout in training mode, a random number in every mode."""

    def __init__(self, features=4):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, features), nn.BatchNorm1d(features)

    def forward(self, x):
        return self.norm(self.linear(x)) + torch.rand(1)


class Joined(nn.Module):
    def __init__(self, join=torch.cat):
        super().__init__()
        self.join = join
        self.edges = nn.ModuleList(Choice({"a": Noisy(), "b": Noisy()}, group="node") for _ in range(3))

    def forward(self, x):
        return self.join([edge(x) for edge in self.edges], 1)


@pytest.mark.parametrize("join", [torch.cat, torch.stack])
def test_what_is_dropped_is_zeros_in_the_supernet_and_in_the_network_alike(join):
    model, x = Joined(join).train(), torch.randn(5, 3)
    before = copy.deepcopy(model.state_dict())
    by_key = {"edges.0": LEFT_OUT, "edges.1": Gate(None, 1), "edges.2": LEFT_OUT}
    with gates(choices(model), by_key):
        torch.manual_seed(0)
        searched = model(x)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items() if not k.startswith("edges.1"))
    model.load_state_dict(before)
    derived = freeze(model, {"edges.0": None, "edges.1": "b", "edges.2": None})
    torch.manual_seed(0)
    assert torch.equal(derived(x), searched)
    assert searched.shape == ((5, 12) if join is torch.cat else (5, 3, 4))
    assert torch.count_nonzero(searched) == 20


@pytest.mark.parametrize(
    ("module", "shape", "other"),
    [
        (nn.ReLU(), (2, 3), (7, 3)),
        (nn.Linear(3, 4), (2, 4), (7, 4)),
        (nn.Flatten(0), (6,), (6,)),
    ],
)
def test_the_form_follows_the_batch(module, shape, other):
    form = OutputForm.of(module, (torch.ones(2, 3),), {})
    assert form.zeros(torch.ones(2, 3)).shape == shape
    assert form.zeros(torch.ones(7, 3)).shape == other
    assert form.zeros(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_the_type_is_that_of_the_output():
    form = OutputForm.of(nn.Embedding(5, 4), (torch.zeros(2, 3, dtype=torch.int64),), {})
    assert form.zeros(torch.zeros(6, 3, dtype=torch.int64)).shape == (6, 3, 4)
    assert form.zeros(torch.zeros(6, 3, dtype=torch.int64)).dtype == torch.float32


def test_a_settled_network_holds_nothing_of_what_was_dropped():
    network = freeze(Joined(), {"edges.0": None, "edges.1": "b", "edges.2": None}).train()
    random = torch.get_rng_state()
    settle(network, lambda device: (torch.ones(2, 3, device=device),))
    assert torch.equal(torch.get_rng_state(), random)
    assert network.training
    for edge in (network.edges[0], network.edges[2]):
        assert isinstance(edge, DroppedTensor)
        assert edge.instead_of is None
    assert {name.split(".")[1] for name in network.state_dict()} == {"1"}


def test_nested_choices_in_what_is_dropped():
    inner = Choice({"x": nn.Linear(3, 4), "y": nn.Linear(3, 4)})
    model = nn.Sequential(Choice({"block": nn.Sequential(inner), "plain": nn.Linear(3, 4)}, group="g"))
    chosen = {"0": None, "0.candidates.0.0": "y"}
    assert freeze(model, chosen)(torch.ones(2, 3)).tolist() == [[0.0] * 4] * 2


def test_without_a_tensor_there_are_no_zeros():
    with pytest.raises(SpaceError, match="without a tensor"):
        DroppedTensor(nn.Identity())(3)
