"""Partial channels and edge normalisation (PC-DARTS, Xu et al. 2020)."""

import math

import pytest
import torch
from conftest import load_ops
from searchers import build_searcher
from small_judge import Node, four_classes, judge_of
from torch import nn

from nas.errors import ConfigError, SpaceError
from nas.methods.deriver import Argmax, TopPredecessors
from nas.methods.dirichlet import Dirichlet
from nas.methods.first_order import FirstOrder
from nas.methods.perturbation import Perturbation
from nas.methods.sampler import GDAS, GumbelSoftmax, Softmax, StraightThrough, Uniform, draw
from nas.methods.second_order import SecondOrder
from nas.spaces.mixed_edges import PartialEdge
from nas.spaces.nas_bench_201 import NasBench201
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import LEFT_OUT, Choice, Gate, choices, gates
from nas.supernet.freezing import freeze
from nas.training.evaluate import count_parameters


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def two_scales(**options):
    return Choice({"x2": Scale(2.0), "x3": Scale(3.0)}, **options)


def test_a_part_of_the_channels_goes_through_the_choice_and_the_rest_past_it():
    edge = PartialEdge(two_scales(key="edge"), parts=2, stride=1)
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 4, 1, 1)
    with gates(choices(edge), {"edge": Gate(None, 1)}):
        # Searched 3, 30 and passed by 100, 1000, and then shuffled: the next edge searches in one of each.
        assert edge(x).flatten().tolist() == [3.0, 100.0, 30.0, 1000.0]


@pytest.mark.parametrize("size", [4, 5])
def test_what_passes_by_an_edge_that_halves_the_resolution_is_max_pooled(size):
    halve = nn.MaxPool2d(1, 2)
    edge = PartialEdge(Choice({"a": halve, "b": halve}, key="edge"), parts=4, stride=2)
    x = torch.rand(2, 8, size, size)
    with gates(choices(edge), {"edge": Gate(None, 0)}):
        y = edge(x)
    passed_by = nn.functional.max_pool2d(x[:, 2:], 2, 2, ceil_mode=True)
    order = [position for first in range(2) for position in range(first, 8, 2)]  # 8 channels as 4 rows of 2, by column
    assert torch.equal(y, torch.cat([x[:, :2, ::2, ::2], passed_by], dim=1)[:, order])


def test_an_edge_that_is_left_out_passes_nothing_by():
    edge = PartialEdge(two_scales(key="edge", added=True), parts=2, stride=1)
    with gates(choices(edge), {"edge": LEFT_OUT}):
        assert edge(torch.rand(1, 4, 1, 1)) == 0


@pytest.mark.parametrize("gate", [Gate(None, 0), Gate((torch.tensor(1.0), torch.tensor(0.0)), None)])
def test_a_share_counts_for_the_whole_edge(gate):
    edge = PartialEdge(two_scales(key="edge", group="node", weighed=True), parts=2, stride=1)
    x = torch.rand(1, 4, 2, 2)
    share = torch.tensor(0.25)
    with gates(choices(edge), {"edge": gate}):
        whole = edge(x)
    with gates(choices(edge), {"edge": Gate(gate.weights, gate.drawn, share=share)}):
        assert torch.equal(edge(x), share * whole)


def test_a_frozen_edge_has_no_share():
    edge = PartialEdge(two_scales(key="edge", group="node", weighed=True), parts=2, stride=1)
    frozen = freeze(edge, {"edge": "x2"})
    assert frozen(torch.ones(1, 2, 1, 1)).flatten().tolist() == [2.0, 1.0]


# -- the shares


def weighed_node(count=3):
    """`count` edges into one node, and a choice that is by itself."""
    edges = [two_scales(key=f"node/{index}", group="node", weighed=True) for index in range(count)]
    return nn.ModuleList([*edges, two_scales(key="alone")])


def test_shares_are_a_softmax_over_the_group():
    arch = ArchParams.from_model(weighed_node())
    with torch.no_grad():
        arch.share_logits.copy_(torch.tensor([1.0, 2.0, 3.0, 50.0]))
    expected = torch.tensor([1.0, 2.0, 3.0]).softmax(dim=0).tolist()
    assert arch.named_shares() == pytest.approx(
        {**{f"node/{index}": share for index, share in enumerate(expected)}, "alone": 1.0}
    )


def test_the_gradient_of_shares_is_that_of_the_softmax():
    arch = ArchParams.from_model(weighed_node(), init_std=1.0, generator=torch.Generator().manual_seed(0)).double()
    assert torch.autograd.gradcheck(
        lambda logits: torch.func.functional_call(Shares(arch), {"arch.share_logits": logits}), arch.share_logits
    )
    arch.shares().sum().backward()  # 2, whatever the logits are
    assert arch.share_logits.grad.abs().max() < 1e-12


class Shares(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.arch = arch

    def forward(self):
        return self.arch.shares()


def test_without_weighed_choices_there_are_no_shares_and_nothing_else_is_drawn(spec):
    model = NasBench201(ops=load_ops("nas_bench_201"), channels=4, cells=1).supernet(spec)
    weighed = NasBench201(ops=load_ops("nas_bench_201"), channels=4, cells=1, edge_normalisation=True).supernet(spec)
    plain, other = (ArchParams.from_model(m, generator=torch.Generator().manual_seed(0)) for m in (model, weighed))
    assert plain.share_logits is None
    assert plain.shares() is None
    assert list(plain.state_dict()) == ["logits", "mask", "rivals"]
    assert torch.equal(plain.logits, other.logits)
    assert set(plain.named_shares().values()) == {1.0}


def test_a_weighed_choice_needs_a_group():
    with pytest.raises(SpaceError, match=r"has a share of a group, got group=None for x2, x3"):
        two_scales(weighed=True)


def test_choices_with_one_key_are_all_weighed_or_none_is():
    model = nn.ModuleList([two_scales(key="a", group="node", weighed=True), two_scales(key="a", group="node")])
    with pytest.raises(SpaceError, match=r"must be alike, got .*, weighed and "):
        choices(model)


# -- what is derived


def test_the_edges_that_stay_are_the_strongest_by_operation_and_share():
    arch = ArchParams.from_model(weighed_node())
    with torch.no_grad():
        arch.logits.copy_(torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.5, 0.0], [0.0, 0.0]]))  # p of x2: 0.88, 0.73, 0.62
        arch.share_logits.zero_()
        unweighed = TopPredecessors(count=1)(arch)
        arch.share_logits[2] = math.log(2.0)  # twice the share, 0.5 against 0.25
    weighed = TopPredecessors(count=1)(arch)
    kept = ["node/0", "node/1", "node/2"]
    assert [unweighed[key] for key in kept] == ["x2", None, None]
    assert [weighed[key] for key in kept] == [None, None, "x2"]
    assert Argmax()(arch) == {**dict.fromkeys(kept, "x2"), "alone": "x2"}


# -- the search


def searcher(spec, cls=FirstOrder, sampler=None, *, parts=2, **options):
    torch.manual_seed(0)
    space = NasBench201(
        ops=load_ops("nas_bench_201"), channels=4, cells=1, partial_channels=parts, edge_normalisation=True
    )
    supernet = space.supernet(spec).double()
    arch = ArchParams.from_model(supernet, init_std=0.1, generator=torch.Generator().manual_seed(0)).double()
    return build_searcher(
        cls,
        supernet=supernet,
        arch=arch,
        sampler=sampler or Softmax(),
        weight_optim=torch.optim.SGD(supernet.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3),
        arch_optim=torch.optim.SGD(arch.parameters(), lr=0.0),
        generator=torch.Generator().manual_seed(1),
        **options,
    )


def batch(spec, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, *spec.input_shapes[0], generator=generator, dtype=torch.float64)
    return images, torch.randint(spec.num_classes, (6,), generator=generator)


SAMPLERS = [Softmax(), GumbelSoftmax(), StraightThrough(), Dirichlet(), Uniform()] + [
    GDAS(estimator=estimator) for estimator in ("sampled", "autodl", "full", "reinmax")
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_architecture_step_moves_the_shares_by_their_gradient(sampler, spec):
    search = searcher(spec, sampler=sampler)
    weight_batch, arch_batch = batch(spec, 0), batch(spec, 1)
    search.arch_step(arch_batch, weight_batch, 1.0)
    found = search.arch.share_logits.grad.clone()
    assert all(weight.grad is None for weight in search.weights)

    # The same draw by finite differences: the shares are smooth, whatever the sampler.
    def loss(shift, row):
        with torch.no_grad():
            search.arch.share_logits[row] += shift
            drawn = draw(sampler, search.arch, 1.0, torch.Generator().manual_seed(1))
            with gates(search.choices, drawn.by_key(search.arch.keys, differentiable=False)):
                value = search.task.loss(search.supernet(arch_batch[0]), arch_batch[1])
            search.arch.share_logits[row] -= shift
        return float(value)

    rows = range(1, len(search.arch.keys))  # the first edge is its node's only one
    expected = [(loss(1e-5, row) - loss(-1e-5, row)) / 2e-5 for row in rows]
    assert found[1:].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert found[1:].abs().max() > 1e-4
    assert found[0] == 0


def test_the_weight_step_does_not_touch_the_shares(spec):
    search = searcher(spec)
    search.weight_step(batch(spec, 0), 1.0)
    assert search.arch.share_logits.grad is None


def test_second_order_by_difference_and_exactly_agree_on_the_shares(spec):
    gradients = []
    for options in ({"method": "exact"}, {"method": "difference", "radius": 1e-4}):
        search = searcher(spec, SecondOrder, **options)
        search.weight_step(batch(spec, 2), 1.0)
        search.arch_step(batch(spec, 1), batch(spec, 0), 1.0)
        gradients.append(search.arch.share_logits.grad)
    first = searcher(spec)
    first.weight_step(batch(spec, 2), 1.0)
    first.arch_step(batch(spec, 1), batch(spec, 0), 1.0)
    exact, difference = gradients
    assert torch.allclose(exact, difference, rtol=1e-3, atol=1e-7)
    assert not torch.allclose(exact, first.arch.share_logits.grad, rtol=1e-2, atol=1e-7)


def test_perturbation_judges_the_mixture_with_its_shares():
    supernet = Node(weighed=True)
    judge, arch = judge_of(supernet, *four_classes(), classes=4), ArchParams.from_model(supernet)
    with torch.no_grad():
        arch.share_logits.copy_(torch.tensor([0.0, 1.0, 2.0]))
    seen, relaxed = [], judge.relaxed

    def watch(by_key):
        gates_now = next(iter(by_key))
        seen.append({key: float(gate.share) for key, gate in gates_now.items()})
        return relaxed(iter([gates_now] * len(judge.validation)))

    judge.relaxed = watch
    Perturbation(rules="strict", batches=1, tune_epochs=0).judged(arch, judge)
    assert len(seen) == 6  # two candidates of each of three choices
    assert all(shares == pytest.approx(arch.named_shares()) for shares in seen)


# -- sizes


@pytest.mark.parametrize("parts", [2, 4])
def test_only_the_supernet_is_partial(parts, spec):
    sizes = {"ops": load_ops("nas_bench_201"), "channels": 8, "cells": 1}
    whole, partial = NasBench201(**sizes), NasBench201(**sizes, partial_channels=parts, edge_normalisation=True)
    assert count_parameters(partial.supernet(spec)) < count_parameters(whole.supernet(spec))
    assert partial.options(spec) == whole.options(spec)
    networks = [
        freeze(space.build(spec, affine=True), {key: names[-2] for key, names in space.options(spec).items()})
        for space in (whole, partial)
    ]
    assert str(networks[0]) == str(networks[1])
    convolutions = [
        next(m for m in choice.candidates[2].modules() if isinstance(m, nn.Conv2d)).in_channels
        for sharing in choices(partial.supernet(spec)).values()
        for choice in sharing
    ]
    assert set(convolutions) == {8 // parts, 16 // parts, 32 // parts}


def test_channels_that_cannot_be_split(spec):
    space = NasBench201(ops=load_ops("nas_bench_201"), channels=6, cells=1, partial_channels=4)
    with pytest.raises(ConfigError, match=r"must divide the channels of every cell, got 4 for 6 channels"):
        space.supernet(spec)


@pytest.mark.parametrize("parts", [0, -1, 1.5])
def test_parts_are_a_positive_integer(parts):
    with pytest.raises(ConfigError, match=r"space\.partial_channels must be an integer >= 1"):
        NasBench201(ops=load_ops("nas_bench_201"), partial_channels=parts)
