"""Operations on the same node share their common first layers, and give the same outputs as alone."""

import pytest
import torch
from methods.test_first_order import image_batch, make
from torch import nn

from nas.methods.sampler import GDAS, Uniform
from nas.spaces import planned_cell
from nas.spaces.ops import ReLUConvBN, SepConv
from nas.spaces.shared_prefix import shared_starts, start_of


def relu_conv():
    return nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1))


def test_it_is_shared_by_all_that_leave_a_node_if_they_are_several():
    one, two, three = relu_conv(), relu_conv(), relu_conv()
    operations = [[one], [two, nn.Identity()], [nn.MaxPool2d(1), three, None]]
    everything = [([0], True), ([0, 1], True), ([0, 1, 2], True)]
    found = shared_starts(operations, everything)
    assert {place: start.rest.sequence for place, start in found.items()} == {(0, 0): one, (1, 0): two}
    # What does not run has no part in it.
    assert shared_starts(operations, [([0], True), ([1], True), ([0, 1, 2], True)]) == {}
    assert shared_starts(operations, [([0], True), ([0, 1], False), ([0, 1, 2], True)]) == {}


def test_pooling_is_shared_if_it_is_the_same():
    pools = [nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)]
    normed = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(2))
    found = shared_starts([[pool] for pool in (*pools, nn.MaxPool2d(3, 1, 1), normed)], [([0], True)] * 5)
    assert found.keys() == {(0, 0), (1, 0), (4, 0)}
    x = torch.randn(1, 2, 4, 4)
    for row, operation in ((0, pools[0]), (1, pools[1]), (4, normed)):
        assert torch.equal(found[row, 0].rest(found[row, 0].module(x)), operation(x))


def test_a_module_with_two_places_in_a_sequence_runs_twice():
    relu = nn.ReLU()
    operations = [nn.Sequential(relu, nn.Conv2d(2, 2, 1), relu) for _ in range(2)]
    x = torch.randn(1, 2, 4, 4)
    start = shared_starts([[one] for one in operations], [([0], True)] * 2)[0, 0]
    assert torch.equal(start.rest(start.module(x)), operations[0](x))


def test_only_where_nothing_but_the_start_would_be_left_out():
    class Backwards(nn.Sequential):
        def forward(self, x):
            return super().forward(-x)

    class Leaky(nn.ReLU):
        def forward(self, x):
            return x

    assert start_of(ReLUConvBN(2, 2, 1, False, kernel_size=1)) is not None
    assert start_of(SepConv(2, 2, 1, False, kernel_size=3)) is not None
    for other in (
        nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1)),
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()),
        nn.Sequential(),
        nn.Identity(),
        Backwards(nn.ReLU()),
        Leaky(),
        # The next module writes into what all would share.
        nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1)),
    ):
        assert start_of(other) is None
    for watched in (lambda sequence: sequence, lambda sequence: sequence[0]):
        sequence = relu_conv()
        watched(sequence).register_forward_hook(lambda *_: None)
        assert start_of(sequence) is None


@pytest.mark.parametrize("sampler", [GDAS(), Uniform()])
def test_steps_are_those_without(space, spec, sampler, monkeypatch):
    results = []
    for shares in (False, True):
        if not shares:
            monkeypatch.setattr(planned_cell, "shared_starts", lambda operations, plan: {})
        else:
            monkeypatch.undo()
        torch.manual_seed(0)
        searcher = make(space.supernet(spec).double().train(), sampler=sampler)
        images, targets = image_batch(spec)
        losses = []
        for _ in range(6):
            losses.append(searcher.weight_step((images.double(), targets), 1.0).loss)
            losses.append(searcher.arch_step((images.double(), targets), None, 1.0).loss)
        results.append([*losses, searcher.arch.logits.detach(), *searcher.supernet.state_dict().values()])
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-12)
