"""The collapse monitor, and how it finds the kinds of candidates from their modules."""

import custom_models
import pytest
import torch
from torch import nn

from nas.errors import ConfigError
from nas.methods.collapse import CollapseMonitor
from nas.methods.operation_kinds import Counts, Kinds, kinds_of
from nas.spaces.custom import Custom
from nas.spaces.ops import InvertedResidual, Noise
from nas.spaces.published import PUBLISHED
from nas.supernet.choice import Choice

# -- kinds


def kinds(space, spec):
    return kinds_of(space.supernet(spec), torch.randn(2, *spec.input_shape))


def names_of(candidates, key):
    return {name for where, name in candidates if where == key}


def test_of_nas_bench_201(nas_bench_201, spec):
    found = kinds(nas_bench_201, spec)
    for key in nas_bench_201.options(spec):
        assert names_of(found.skips, key) == {"skip_connect"}
        assert names_of(found.parameter_free, key) == {"none", "skip_connect", "avg_pool_3x3"}


def test_of_darts_where_a_skip_with_stride_has_parameters(darts, spec):
    found = kinds(darts, spec)
    for key in darts.options(spec):
        strided = key.startswith(("reduce/0-", "reduce/1-"))
        assert names_of(found.skips, key) == (set() if strided else {"skip_connect"})
        pools = {"none", "max_pool_3x3", "avg_pool_3x3"}
        assert names_of(found.parameter_free, key) == (pools if strided else pools | {"skip_connect"})


def test_counts_of_a_published_genotype(darts, spec):
    found = kinds(darts, spec).count(PUBLISHED["DARTS_V1"].choices)
    # Its six skips all start at computed nodes or in the normal cell, so they are identities; and five pools.
    assert found == Counts(kept=16, skips=6, parameter_free=11)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


class Rescaled(nn.Module):
    """The identity as long as nothing is learnt."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x


CANDIDATES = {
    "dropout": (nn.Dropout(0.5), True, True),
    "sequential": (nn.Sequential(nn.Identity(), nn.Dropout(0.1)), True, True),
    "relu": (nn.ReLU(), False, True),
    "in place": (nn.ReLU(inplace=True), False, True),
    "twice": (Doubled(), False, True),
    "noise": (Noise(4, 4, 1, True), False, True),
    "learnt": (Rescaled(), False, False),
    "residual": (InvertedResidual(4, 4, 1, False, kernel_size=3, expansion=1), False, False),
    "norm": (nn.BatchNorm2d(4, affine=False), False, True),
}


def test_whatever_the_names_are():
    candidates = {name: module for name, (module, _, _) in CANDIDATES.items()}
    # After a ReLU, so that another one changes nothing of what it is given here.
    model = nn.Sequential(nn.ReLU(), Choice(candidates, key="k")).train()
    before = torch.random.get_rng_state()
    found = kinds_of(model, torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)))
    assert names_of(found.skips, "k") == {name for name, (_, skip, _) in CANDIDATES.items() if skip}
    assert names_of(found.parameter_free, "k") == {name for name, (_, _, free) in CANDIDATES.items() if free}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model[1].training


def test_a_key_shared_by_places_that_differ():
    def choice(width):
        return Choice({"a": nn.Identity() if width == 4 else nn.Linear(4, width), "b": nn.Tanh()}, key="k")

    model = nn.ModuleDict({"one": choice(4), "two": choice(4), "three": choice(4)})
    model["three"].candidates[0] = nn.Linear(4, 4)
    model = nn.Sequential(*model.values())
    found = kinds_of(model, torch.randn(2, 4))
    assert (found.skips, found.parameter_free) == (frozenset(), {("k", "b")})


def test_a_choice_that_is_not_part_of_the_network_does_not_count(spec):
    found = kinds(Custom(factory=custom_models.nested), spec)
    inside = {"inner activation": "relu", "1.candidates.1.2": "1", "1.candidates.2": "max"}
    assert found.count({"kind": "plain", **inside}) == Counts(kept=1, skips=0, parameter_free=0)
    assert found.count({"kind": "block", **inside}) == Counts(kept=3, skips=0, parameter_free=1)
    assert found.count({"kind": "pool", **inside}) == Counts(kept=2, skips=0, parameter_free=1)
    assert found.count({"kind": None, **inside}) == Counts(kept=0, skips=0, parameter_free=0)


def test_of_a_model_with_two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.join = Choice(
                {"add": custom_models.Add(), "first": First(), "bilinear": nn.Bilinear(3, 3, 3)}, key="k"
            )

        def forward(self, a, b):
            return self.join(a, b)

    class First(nn.Module):
        def forward(self, a, b):
            return a

    found = kinds_of(Two(), (torch.randn(2, 3), torch.randn(2, 3)))
    assert (found.skips, found.parameter_free) == ({("k", "first")}, {("k", "add"), ("k", "first")})


# -- the monitor

NOTHING = Kinds(frozenset(), frozenset(), {})


def counts(skips=0, parameter_free=0, kept=10):
    return Counts(kept, skips, parameter_free)


def test_limits_are_exceeded_and_not_reached():
    monitor = CollapseMonitor(kinds=NOTHING, skips=0.5, parameter_free=0.7)
    assert monitor.exceeded(counts(5, 7)) is None
    assert monitor.exceeded(counts(6, 6)) == "6 of 10 derived operations are skips, more than 50%"
    assert monitor.exceeded(counts(0, 8)) == "8 of 10 derived operations have no parameters, more than 70%"
    assert monitor.exceeded(counts(0, 0, kept=0)) is None
    assert CollapseMonitor(kinds=NOTHING, skips=None, parameter_free=None).exceeded(counts(10, 10)) is None


def test_patience_is_a_whole_number():
    """The warning comes in the epoch in which the count equals it."""
    with pytest.raises(ConfigError, match=r"monitor.patience must be a whole number of at least 1, got 2\.5"):
        CollapseMonitor(kinds=NOTHING, patience=2.5)


def test_patience_counts_epochs_in_a_row_and_is_reached_once():
    monitor = CollapseMonitor(kinds=NOTHING, patience=3)
    bad, good = counts(9, 9), counts()
    trace, row = [], 0
    for found in (bad, bad, good, bad, bad, bad, bad, good, bad, bad, bad):
        row = monitor.epochs_in_a_row(row, found)
        trace.append(row)
    assert trace == [1, 2, 0, 1, 2, 3, 4, 4, 5, 6, 7]
    assert trace.count(3) == 1
