"""Operations that leave one node share the ReLU that they begin with, and compute what they compute alone."""

import pytest
import torch
from test_searcher import image_batch, make
from torch import nn

from nas.ops import ReLUConvBN, SepConv
from nas.sampler import GDAS, Uniform
from nas.spaces import cell as cell_module
from nas.spaces.shared_relu import after_first, begins_with_relu, sharing


def relu_conv():
    return nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1))


def test_it_is_shared_by_all_that_leave_a_node_if_they_are_several():
    one, two, three = relu_conv(), relu_conv(), relu_conv()
    operations = [[one], [two, nn.Identity()], [nn.MaxPool2d(1), three, None]]
    found = sharing(operations, [([0], True), ([0, 1], True), ([0, 1, 2], True)])
    assert {place: call.args[0] for place, call in found.items()} == {(0, 0): one, (1, 0): two}
    # What does not run has no part in it.
    assert sharing(operations, [([0], True), ([1], True), ([0, 1, 2], True)]) == {}
    assert sharing(operations, [([0], True), ([0, 1], False), ([0, 1, 2], True)]) == {}


def test_only_where_nothing_but_the_relu_would_be_left_out():
    class Backwards(nn.Sequential):
        def forward(self, x):
            return super().forward(-x)

    assert begins_with_relu(ReLUConvBN(2, 2, 1, False, kernel_size=1))
    assert begins_with_relu(SepConv(2, 2, 1, False, kernel_size=3))
    assert not begins_with_relu(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1)))
    assert not begins_with_relu(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()))
    assert not begins_with_relu(nn.Sequential())
    assert not begins_with_relu(Backwards(nn.ReLU()))
    for watched in (lambda sequence: sequence, lambda sequence: sequence[0]):
        sequence = relu_conv()
        watched(sequence).register_forward_hook(lambda *_: None)
        assert not begins_with_relu(sequence)


def test_what_is_left():
    sequence, x = relu_conv(), torch.randn(1, 2, 3, 3)
    assert torch.equal(after_first(sequence, x.relu()), sequence(x))


@pytest.mark.parametrize("sampler", [GDAS(), Uniform()])
def test_steps_are_those_without(space, spec, sampler, monkeypatch):
    results = []
    for shares in (False, True):
        if not shares:
            monkeypatch.setattr(cell_module, "sharing", lambda operations, plan: {})
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
