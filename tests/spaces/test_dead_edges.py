"""Dead edges of a drawn cell do not run, and nothing else changes."""

import pytest
import torch
from methods.test_first_order import image_batch, make
from torch import nn

from nas.methods.sampler import GDAS, Gates, straight_through
from nas.spaces import planned_cell
from nas.spaces.cell import Cell
from nas.spaces.dead_edges import keeps_zeros, living, only_drawn
from nas.spaces.ops import Noise, Zero
from nas.supernet.choice import Choice, Gate


def chosen(name, *, candidates=("none", "skip", "conv")):
    """An edge that has drawn an operation."""
    made = {"none": Zero(2, 2, 1, False), "skip": nn.Identity(), "conv": nn.Conv2d(2, 2, 1, bias=False)}
    made["relu"] = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1, bias=False))
    edge = Choice({name: made[name] for name in candidates})
    edge.gate = Gate(None, candidates.index(name))
    return edge


def plan(*rows, inputs=1, outputs=None):
    """rows: the names of the edges into each node."""
    operations = [[only_drawn(chosen(name)) for name in row.split()] for row in rows]
    found = living(operations, inputs=inputs, outputs=[inputs + len(rows) - 1] if outputs is None else outputs)
    return [sources if needed else None for sources, needed in found]


def test_which_edges_live():
    assert plan("conv", "conv skip", "conv conv conv") == [[0], [0, 1], [0, 1, 2]]
    # Node 1 gets nothing, so that what leaves it is nothing.
    assert plan("none", "conv skip", "conv conv conv") == [None, [0], [0, 2]]
    # Node 2 does not reach node 3, and node 1 only by way of node 2.
    assert plan("conv", "conv skip", "conv none none") == [None, None, [0]]
    # Nothing reaches the output: zeros.
    assert plan("none", "none skip", "none conv conv") == [None, None, []]
    # In the DARTS space every node is in the output.
    assert plan("none none", "conv none skip", inputs=2, outputs=[2, 3]) == [[], [0]]


def test_only_what_is_known_to_keep_zeros_rests():
    assert keeps_zeros(nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2, affine=False)))
    assert not keeps_zeros(nn.BatchNorm2d(2))
    assert not keeps_zeros(nn.BatchNorm2d(2, affine=False).eval())
    assert not keeps_zeros(nn.Conv2d(2, 2, 1))
    assert not keeps_zeros(Noise(2, 2, 1, False))

    class Coordinates(nn.Conv2d):
        def forward(self, x):
            return super().forward(x + 1)

    assert keeps_zeros(nn.Conv2d(2, 2, 1, bias=False))
    assert not keeps_zeros(Coordinates(2, 2, 1, bias=False))
    watched = nn.Conv2d(2, 2, 1, bias=False)
    watched.register_forward_hook(lambda module, args, output: output + 1)
    assert not keeps_zeros(watched)
    assert not keeps_zeros(nn.Sequential(nn.ReLU(), nn.Sigmoid()))


def test_hooks_of_choices_run_whatever_is_drawn():
    cell = Cell(
        inputs=1, nodes=2, edge=lambda *_: chosen("skip", candidates=("none", "skip", "relu")), outputs=[2]
    ).train()
    called = []
    for edges in cell.edges:
        for edge in edges:
            edge.register_forward_hook(lambda *_: called.append(1))
    for drawn in range(3):
        for edges in cell.edges:
            for edge in edges:
                edge.gate = Gate(None, drawn)
        cell([torch.randn(1, 2, 3, 3)])
        assert len(called) == 3
        called.clear()


def test_edges_without_gates_all_live():
    edges = [[Zero(2, 2, 1, False)], [nn.Identity(), nn.Identity()]]
    operations = [[only_drawn(edge) for edge in incoming] for incoming in edges]
    assert living(operations, inputs=1, outputs=[2]) == [([0], True), ([0, 1], True)]


def everything(operations, *, inputs, outputs):
    return [(list(range(len(incoming))), True) for incoming in operations]


def gradients(searcher):
    """Of weights and logits, where no gradient is 0."""
    both = (*searcher.weights, *searcher.arch.parameters())
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in both]


def steps(space, spec, plan_of, monkeypatch, **kwargs):
    """Losses, gradients and forward passes of 12 draws, from weights that stay as they are."""
    monkeypatch.setattr(planned_cell, "living", plan_of)
    torch.manual_seed(0)
    searcher = make(space.supernet(spec).double(), lr=0.0, momentum=0.0, weight_decay=0.0, arch_lr=0.0, **kwargs)
    inputs, targets = image_batch(spec)
    batch = inputs.double(), targets
    passes = 0

    def count(module, args, output):
        nonlocal passes
        passes += 1

    for module in searcher.supernet.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    losses, found = [], []
    for _ in range(6):
        losses.append(searcher.weight_step(batch, 1.0).loss)
        found.append(gradients(searcher))
        losses.append(searcher.arch_step(batch, batch, 1.0).loss)
        found.append(gradients(searcher))
    return losses, found, passes


@pytest.mark.parametrize("estimator", ["sampled", "autodl"])
def test_losses_and_gradients_are_those_of_running_everything(space, spec, estimator, monkeypatch):
    ours, got, passes = steps(space, spec, living, monkeypatch, sampler=GDAS(estimator=estimator))
    theirs, expected, all_passes = steps(space, spec, everything, monkeypatch, sampler=GDAS(estimator=estimator))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for one, other in zip(got, expected, strict=True):
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(one, other, strict=True))
    assert passes < all_passes


def test_a_step_in_which_everything_is_dead(nas_bench_201, spec):
    class Nothing:
        samples = 1

        def __call__(self, logits, temperature, generator):
            drawn = torch.zeros(len(logits), dtype=torch.int64)
            return Gates(straight_through(drawn, logits.softmax(-1)), drawn)

    searcher = make(nas_bench_201.supernet(spec), sampler=Nothing())
    assert all(names[0] == "none" for names in searcher.arch.candidates.values())
    before = searcher.arch.logits.detach().clone()
    batch = image_batch(spec)
    assert searcher.weight_step(batch, 1.0).loss.isfinite()
    assert searcher.arch_step(batch, batch, 1.0).loss.isfinite()
    assert torch.equal(searcher.arch.logits.grad, torch.zeros_like(before))
    # Adam decays the logits all the same, as in every other step.
    assert not torch.equal(searcher.arch.logits, before)


def test_weights_of_dead_operations_rest(nas_bench_201, spec):
    """Those of an edge whose input is zero have a gradient of 0 where everything runs, by which momentum would move
    them."""

    class Dead:
        samples = 1

        def __call__(self, logits, temperature, generator):
            names = list(searcher.arch.candidates["cell/0-1"])
            drawn = [names.index(name) for name in ("none", "nor_conv_1x1", "nor_conv_3x3", "nor_conv_1x1")]
            drawn += [names.index("none"), names.index("nor_conv_1x1")]
            return Gates(straight_through(torch.tensor(drawn), logits.softmax(-1)), torch.tensor(drawn))

    searcher = make(nas_bench_201.supernet(spec), sampler=Dead())
    assert searcher.arch.keys[:3] == ("cell/0-1", "cell/0-2", "cell/1-2")
    searcher.weight_step(image_batch(spec), 1.0)
    for choice in searcher.choices["cell/1-2"]:
        assert all(p.grad is None for p in choice.parameters())
    for choice in searcher.choices["cell/2-3"]:
        assert any(p.grad is not None for p in choice.parameters())
