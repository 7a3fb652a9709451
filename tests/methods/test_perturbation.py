"""Perturbation as in its authors' code: rounds, ties, edges that come back, the whole split, tuning."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_judge import BATCH, Node, arch_with, four_classes, judge_of
from torch import nn

from nas.errors import ConfigError, DivergenceError
from nas.methods.perturbation import Perturbation, abreast
from nas.methods.tuning import Recipe, Tuning
from nas.runtime.nonfinite import Guard, OnNonfinite
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice
from nas.training.task import Classification, Metric, Regression


def untuned(**arguments):
    return Perturbation(tune_epochs=0, **arguments)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return 0 * x + self.value


def sum_of(values):
    """Edges into one node, whose outputs are these numbers whatever is kept of their two candidates."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.edges = nn.ModuleList(
                Choice({"a": Constant(value), "b": Constant(value)}, key=key, group="node")
                for key, value in values.items()
            )

        def forward(self, x):
            return sum(edge(x) for edge in self.edges)

    return Sum()


def test_the_two_rules_differ_where_edges_make_up_for_each_other():
    values = {"a": 1.0, "b": -1.2, "c": 1.1, "d": 5.0}
    supernet = sum_of(values)
    judge = judge_of(supernet, torch.zeros(8), torch.full((8,), sum(values.values())), classes=0, task=Regression())
    kept = {}
    for rules in ("published", "strict"):
        chosen = untuned(rules=rules, count=2).judged(ArchParams.from_model(supernet, init_std=0.0), judge)
        kept[rules] = {key for key, name in chosen.items() if name is not None}
    assert kept == {
        "published": {"b", "d"},
        "strict": {"c", "d"},
    }  # a and c are the least; without a, b makes up for it


def test_of_equal_operations_the_first_is_kept_whatever_the_logits_prefer():
    supernet = Choice({name: nn.Identity() for name in "abc"}, key="op")
    inputs, labels = four_classes()
    arch = arch_with(supernet, op=[0.0, 1.0, 1.0])
    judge = judge_of(supernet, 0 * inputs.repeat(1, 2), labels, classes=4)
    assert untuned().judged(arch, judge) == {"op": "a"}
    assert untuned(rules="strict").judged(arch, judge) == {"op": "b"}


def test_the_metric_alone_decides():
    """The loss prefers b; accuracy is the same without either, so that the first is kept."""

    class Flat(Classification):
        metric = Metric("flat", higher_is_better=True)

        def measure(self, outputs, targets):
            return torch.ones(len(targets))

    supernet = Choice({"a": Constant(0.0), "b": nn.Identity()}, key="op")
    labels = torch.arange(32) % 4
    arch = arch_with(supernet, op=[0.0, 0.0])
    judge = judge_of(supernet, F.one_hot(labels, 4) * 4.0, labels, classes=4, task=Flat())
    assert untuned().judged(arch, judge) == {"op": "a"}
    assert untuned(rules="strict").judged(arch, judge) == {"op": "b"}


def test_a_round_decides_one_choice_of_every_kind_of_cell():
    keys = [f"{kind}/{edge}" for kind in ("normal", "reduce") for edge in ("0-2", "1-2", "0-3")]
    rounds = abreast(keys, [key.split("/")[0] for key in keys], torch.Generator().manual_seed(0))
    assert [sorted(key.split("/")[0] for key in keys) for keys in rounds] == [["normal", "reduce"]] * 3
    assert sorted(key for keys in rounds for key in keys) == sorted(keys)
    orders = {
        tuple(key for keys in abreast(keys, ["x"] * 6, torch.Generator().manual_seed(seed)) for key in keys)
        for seed in range(8)
    }
    assert len(orders) > 1


@pytest.mark.parametrize(("batches", "examples"), [(None, 40), (3, 24)])
def test_the_whole_split_is_scored(batches, examples):
    supernet = Node()
    judge = judge_of(supernet, *four_classes(40), classes=4, batches=batches)
    assert judge.examples == examples
    seen = []
    supernet.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    untuned(batches=batches).judged(arch_with(supernet, low=[0, 0], high=[0, 0], idle=[0, 0]), judge)
    assert sum(seen) == 3 * 2 * examples  # three choices, without each of their two candidates


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = Choice({name: nn.Linear(2, 4) for name in "ab"}, key="one")
        self.two = Choice({name: nn.Linear(4, 4) for name in "cd"}, key="two")

    def forward(self, x):
        return self.two(self.one(x))


def test_tuning_is_a_step_of_the_open_logits_and_then_one_of_the_weights():
    """Against the formulas in float64: Adam with its state of the search, SGD with decay and clipping."""
    supernet = Two().double()
    inputs, labels = four_classes(3 * BATCH)
    arch = ArchParams.from_model(supernet, init_std=0.3).double()
    arch_optim = torch.optim.Adam(arch.parameters(), lr=0.01, betas=(0.5, 0.999), weight_decay=1e-3)
    arch.probs().square().sum().backward()
    arch_optim.step()
    arch_optim.zero_grad()
    judge = judge_of(supernet, inputs.double(), labels, classes=4, arch_optim=arch_optim)
    weights = [weight.detach().clone().requires_grad_() for weight in supernet.parameters()]
    logits, reference = copy.deepcopy((arch, arch_optim))
    sgd = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.05)

    def loss(batch):
        x, y = batch
        p = logits.probs()[1]
        hidden = F.linear(x, weights[2], weights[3])  # one: b is decided
        scores = p[0] * F.linear(hidden, weights[4], weights[5]) + p[1] * F.linear(hidden, weights[6], weights[7])
        return F.cross_entropy(scores, y)

    pairs = zip(judge.weight_loader.epoch(0), judge.tuning_loader.epoch(0), strict=True)
    for weight_batch, arch_batch in pairs:
        reference.zero_grad()
        loss(arch_batch).backward()
        reference.step()
        sgd.zero_grad()
        loss(weight_batch).backward()
        nn.utils.clip_grad_norm_(weights, 0.2)
        sgd.step()

    before = arch.logits.detach().clone()
    with judge.weights_put_back():
        recipe = Recipe(lr=0.1, weight_decay=0.05, grad_clip=0.2)
        tuning = Tuning(judge, arch, recipe, total=judge.steps)
        for steps in (1, 2):  # in two calls, which go on
            tuning.run({"one": 1}, steps=steps)
        for weight, expected in zip(supernet.parameters(), weights, strict=True):
            torch.testing.assert_close(weight.detach(), expected.detach(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(tuning.arch.logits.detach(), logits.logits.detach(), rtol=1e-6, atol=1e-9)
    assert torch.equal(arch.logits, before)
    assert arch.logits.grad is None


def test_the_learning_rate_falls_by_epoch_where_it_is_to():
    supernet = Two()
    judge = judge_of(supernet, *four_classes(3 * BATCH), classes=4)
    arch = ArchParams.from_model(supernet)
    tuning = Tuning(judge, arch, Recipe(lr=0.0025, lr_end=0.001, logits=False), total=4 * judge.steps)
    found = []
    for _ in range(4):
        tuning.run({}, steps=judge.steps)
        found.append(tuning.optim.param_groups[0]["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optim := torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0025), 4, eta_min=0.001
    )
    for lr in found:
        assert lr == pytest.approx(optim.param_groups[0]["lr"], rel=1e-12)
        optim.step()
        schedule.step()


def test_epochs_are_tuned_between_rounds_and_none_after_the_last(monkeypatch):
    calls = []
    monkeypatch.setattr(Tuning, "run", lambda self, decided, *, steps: calls.append((len(decided), steps)))
    supernet = Node()
    judge = judge_of(supernet, *four_classes(40), classes=4)
    arch = arch_with(supernet, low=[0, 0], high=[0, 0], idle=[0, 0])
    Perturbation(count=2, tune_epochs=2, tune_logits=False).judged(arch, judge)
    assert calls == [(1, 2 * 5), (2, 2 * 5), (3, 2 * 5)]  # then the node's edges go


def test_without_an_optimiser_the_logits_cannot_be_tuned():
    supernet = Node()
    arch = arch_with(supernet, low=[0, 0], high=[0, 0], idle=[0, 0])
    with pytest.raises(ConfigError, match=r"set deriver\.tune_logits=false"):
        Perturbation().judged(arch, judge_of(supernet, *four_classes(40), classes=4))


@pytest.mark.parametrize("logits", [True, False])
def test_a_step_whose_loss_is_no_number_stops_the_tuning_or_is_skipped(logits):
    supernet, (inputs, labels) = Two(), four_classes(3 * BATCH)
    inputs[5] = torch.nan  # of one batch of each split
    arch = ArchParams.from_model(supernet)
    arch_optim = torch.optim.SGD(arch.parameters(), lr=0.1)

    def tuned(action):
        guard = Guard(OnNonfinite(action))
        judge = judge_of(supernet, inputs, labels, classes=4, arch_optim=arch_optim, guard=guard)
        tuning = Tuning(judge, arch, Recipe(logits=logits), total=judge.steps)
        tuning.run({}, steps=judge.steps)
        assert all(one.isfinite().all() for one in (tuning.arch.logits, *supernet.parameters()))
        return guard

    assert tuned("skip").skipped == 1 + logits
    with pytest.raises(DivergenceError, match="the loss is nan"):
        tuned("stop")


def test_parts_that_the_search_keeps_in_evaluation_mode_stay_in_it():
    supernet, seen = Two().train(), set()
    supernet.two.candidates[0].eval()
    for name, module in supernet.named_modules():
        module.register_forward_pre_hook(lambda module, inputs, name=name: seen.add((name, module.training)))
    judge = judge_of(supernet, *four_classes(3 * BATCH), classes=4)
    Tuning(judge, ArchParams.from_model(supernet), Recipe(logits=False), total=1).run({}, steps=1)
    assert {name for name, training in seen if not training} == {"two.candidates.0"}
