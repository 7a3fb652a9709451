"""The trial of a training step."""

import contextlib
import copy
import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import nas
from nas.errors import ConfigError, DivergenceError, SpaceError
from nas.spaces.cell import DropPath
from nas.supernet.choice import Choice
from nas.supernet.freezing import freeze
from nas.training.loop import TrainingStep
from nas.training.retrain_job import check_drop_path
from nas.training.task import Classification, Custom
from nas.training.trial_training import check_saves_all, try_small, try_training


def batch(count=8):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 3


def tried(network, **options):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    try_training(network, batch(), task=Classification(), optimizer=optimizer, **options)
    return optimizer


def test_it_leaves_no_trace():
    network = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)).eval()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    optimizer = tried(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not optimizer.state
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_part_of_one_example_is_found_where_the_others_have_two():
    network = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    tried(network, step=TrainingStep(accumulation=4))
    with pytest.raises(SpaceError, match=r"fails in 1 \(BatchNorm1d\).*change retrain.batch_size or retrain.accumul"):
        tried(network, step=TrainingStep(accumulation=7))


def test_a_part_in_which_no_label_counts_is_not_the_one_that_is_tried():
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 0.0, 1.0]))
    task = Custom(loss=loss, metric=lambda outputs, targets: targets.float(), name="x", higher_is_better=True)
    network, (inputs, _) = nn.Linear(6, 3), batch(4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for targets in (torch.tensor([0, 2, 1, 1]), torch.tensor([1, 1, 0, 1])):
        step = TrainingStep(accumulation=2)
        try_training(network, (inputs, targets), task=task, optimizer=optimizer, step=step)
    with pytest.raises(DivergenceError, match=r"on trial: weights: the loss is nan, .*; correct the model, the loss"):
        try_training(network, (inputs, torch.ones(4).long()), task=task, optimizer=optimizer, step=step)


class Remembering(nn.Module):
    """Subtracts a running mean, which it holds in one of several ways."""

    def __init__(self, holds):
        super().__init__()
        self.layer, self.holds, self.mean = nn.Linear(6, 3), holds, torch.zeros(3)
        if "buffer" in holds:
            del self.mean
            self.register_buffer("mean", torch.zeros(3), persistent=holds == "buffer")
        if holds == "list":
            self.layers = [nn.Linear(3, 3)]

    def forward(self, x):
        y = self.layer(x)
        if self.training and self.holds != "list":
            self.mean = 0.9 * self.mean + y.detach().mean(0)
        if self.holds == "late":
            self.register_buffer("count", torch.ones(1))
        return self.layers[0](y) if self.holds == "list" else y - self.mean


@pytest.mark.parametrize(
    ("holds", "problem"),
    [
        ("buffer", None),
        ("unsaved buffer", None),
        ("attribute", "gives other outputs after loading what is saved of the network"),
        ("list", "gives other outputs after loading what is saved of the network"),
        ("late", "cannot be loaded into a new one .*count"),
    ],
)
def test_what_a_network_does_not_save_is_found_before_it_is_trained(holds, problem):
    network = Remembering(holds)

    def then():
        check_saves_all(network, functools.partial(Remembering, holds), batch()[0])

    with contextlib.nullcontext() if problem is None else pytest.raises(SpaceError, match=problem):
        tried(network, then=then)


def test_weights_that_cannot_be_averaged():
    network = nn.Sequential(nn.Linear(6, 3))
    scale = network[0].weight.sum()  # no parameter: torch cannot copy what has a history
    network[0].scale = scale  # a tensor of a module is copied without its history
    tried(network)
    network[0].scale = SimpleNamespace(of=scale)
    tried(network, decay=0)
    with pytest.raises(SpaceError, match=r"^0\.scale of .* copied \(RuntimeError: Only Tensors.*parametrizations"):
        tried(network)


def test_a_pair_is_an_auxiliary_head_and_three_are_not():
    class Heads(nn.Module):
        def __init__(self, count):
            super().__init__()
            self.count, self.head = count, nn.Linear(6, 3)

        def forward(self, x):
            return tuple(self.head(x) for _ in range(self.count))

    tried(Heads(2))
    with pytest.raises(
        SpaceError, match="in training the derived network returns a tuple, expected one tensor, or a pair"
    ):
        tried(Heads(3))


def test_a_choice_that_the_model_reaches_by_a_closure():
    class Closure(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = Choice({"a": nn.Linear(6, 3), "b": nn.Linear(6, 3)})
            choice = self.c
            self.run = lambda x: choice(x)

        def forward(self, x):
            return self.run(x)

    with pytest.raises(SpaceError, match="the derived network still runs a choice"):
        tried(freeze(Closure(), {"c": "a"}))


@pytest.mark.parametrize("count", [1, 8])
def test_two_examples_are_enough_for_a_network_by_itself(count):
    network = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    seen = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    try_small(lambda: network, batch(count), task=Classification(), step=TrainingStep())
    assert seen == [2, 2, 2, 2, 1]  # one of training, two to compare what is saved, two to compare with one example


class Squeezed(nn.Linear):
    def forward(self, x):
        return super().forward(x).squeeze()


def test_a_network_that_squeezes_one_example_is_refused_where_the_task_needs_its_dimension():
    step, values = TrainingStep(), (batch()[0], torch.randn(8))

    def errors(outputs, targets):
        return (outputs - targets).abs()

    task = functools.partial(Custom, metric=errors, name="error", higher_is_better=False)
    mean = task(loss=lambda outputs, targets: errors(outputs, targets).mean())
    try_small(lambda: Squeezed(6, 1), values, task=mean, step=step)  # () and (1,) give the right number
    with pytest.raises(SpaceError, match=r"outputs of shape \(\) for one example, expected \(1,\).*squeeze\(-1\)"):
        try_small(lambda: Squeezed(6, 1), values, task=task(loss=nn.BCEWithLogitsLoss()), step=step)
    with pytest.raises(SpaceError, match=r"outputs of shape \(3,\) for one example, expected \(1, 3\)"):
        try_small(lambda: Squeezed(6, 3), batch(), task=Classification(), step=step)
    targets = torch.arange(257) % 3
    with pytest.raises(SpaceError, match=r"outputs of shape \(3,\) for one example"):
        nas.retrain(Squeezed(6, 3), None, (torch.randn(257, 6), targets), epochs=1, progress=False)


def test_dropping_paths_where_there_are_none_is_refused():
    path = DropPath()
    check_drop_path(nn.Sequential(path), 0.2)
    assert path.rate == pytest.approx(0.2)
    check_drop_path(nn.Linear(1, 1), 0.0)
    with pytest.raises(ConfigError, match=r"retrain\.drop_path is 0\.2, but the network has no DropPath"):
        check_drop_path(nn.Linear(1, 1), 0.2)
