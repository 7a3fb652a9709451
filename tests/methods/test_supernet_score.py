"""The networks that a judge scores, the batch-norm statistics it uses, and that it changes nothing."""

import copy
import itertools

import pytest
import torch
from small_judge import OneBest, four_classes, judge_of
from torch import nn

from nas.errors import GenotypeError
from nas.methods.discretisation_gap import Gap, draws
from nas.methods.sampler import GDAS, Softmax
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice, Gate, choices, gates
from nas.supernet.freezing import freeze
from nas.training.batch_norm import batch_statistics
from nas.training.evaluate import Score
from nas.training.task import Classification


class Restless(nn.Module):
    """Batch norms with a past, dropout, noise from torch's own generator, and a buffer that counts forward passes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm1d(3)
        self.op = Choice({"linear": nn.Linear(3, 6), "deep": nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6))})
        self.edge = Choice({"identity": nn.Identity(), "norm": nn.BatchNorm1d(6, affine=False)}, group="node")
        self.untracked = nn.BatchNorm1d(6, track_running_stats=False)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        self.calls += 1
        hidden = self.op(self.norm(x)) + 0.1 * torch.randn(len(x), 6)
        return self.last(nn.functional.dropout(self.untracked(hidden + self.edge(hidden)), training=self.training))


@pytest.fixture
def restless():
    torch.manual_seed(0)
    model = Restless()
    with gates(choices(model), {"op": Gate(None, 1), "edge": Gate(None, 1)}):
        for _ in range(3):
            model(torch.randn(8, 3) * 4 + 2)
    model.edge.eval()  # a mode of its own
    model.last.weight.requires_grad_(False)
    return model


def data(examples=32):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(examples, 3, generator=generator) * 2 + 1, torch.arange(examples) % 4


def trace(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(name, module.training, getattr(module, "momentum", 0)) for name, module in model.named_modules()],
        [getattr(module, "track_running_stats", None) for module in model.modules()],
        [(weight.requires_grad, weight.grad) for weight in model.parameters()],
        torch.get_rng_state(),
    )


def same(one, other):
    return all(torch.equal(one[0][name], other[0][name]) for name in one[0]) and (
        one[1:4] == other[1:4] and torch.equal(one[4], other[4])
    )


@pytest.mark.parametrize("sampler", [Softmax(), GDAS()], ids=["softmax", "gdas"])
def test_scoring_leaves_no_trace(restless, sampler):
    judge = judge_of(restless, *data(), classes=4)
    arch = ArchParams.from_model(restless)
    buffers = [id(buffer) for buffer in restless.buffers()]
    before = trace(restless)
    judge.relaxed(draws(judge.generator(), arch=arch, sampler=sampler, temperature=1.0))
    assert same(before, trace(restless))
    for recalibrated in (False, True):
        judge.decided({"op": "deep", "edge": None}, recalibrated=recalibrated)
        assert same(before, trace(restless))
    assert [id(buffer) for buffer in restless.buffers()] == buffers
    assert restless.op.gate is None


def test_an_error_in_the_middle_leaves_no_trace(restless):
    inputs, labels = data()
    judge = judge_of(restless, inputs, labels, classes=4)
    judge.calibration[-1] = (torch.zeros(2, 5), labels[:2])  # too wide
    before = trace(restless)
    with pytest.raises(RuntimeError):
        judge.decided({"op": "deep", "edge": "norm"}, recalibrated=True)
    assert same(before, trace(restless))


def test_scores_are_the_same_every_time_whatever_happens_in_between(restless):
    judge = judge_of(restless, *data(), classes=4)
    first = judge.decided({"op": "deep", "edge": "norm"}, recalibrated=True)
    torch.manual_seed(99)
    judge.decided({"op": "linear", "edge": None}, recalibrated=True)
    assert judge.decided({"op": "deep", "edge": "norm"}, recalibrated=True) == first


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = Choice({"a": nn.Linear(3, 5), "b": nn.Sequential(nn.Linear(3, 5), nn.ReLU())})
        self.norm = nn.BatchNorm1d(5)
        self.drop = Choice({"skip": nn.Identity(), "tanh": nn.Tanh()}, group="sum")
        self.last = nn.Linear(5, 4)

    def forward(self, x):
        hidden = self.norm(self.op(x))
        return self.last(hidden + self.drop(hidden))


@pytest.fixture
def supernet():
    model = Norms()
    model.norm.running_mean += 1
    model.norm.running_var *= 3
    return model


def reference(network, batches):
    """Plain code for what a score is."""
    with torch.no_grad():
        outputs = torch.cat([network(inputs) for inputs, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    accuracy = (outputs.argmax(1) == targets).float().mean()
    return Score(accuracy.item(), nn.functional.cross_entropy(outputs, targets).item(), len(targets))


def close(score, expected):
    return score.examples == expected.examples and torch.allclose(
        torch.tensor([score.metric, score.loss]), torch.tensor([expected.metric, expected.loss]), atol=1e-6
    )


@pytest.mark.parametrize("chosen", [{"op": "a", "drop": None}, {"op": "b", "drop": "tanh"}], ids=str)
def test_a_decided_architecture_is_the_frozen_network(chosen, supernet):
    judge = judge_of(supernet, *data(), classes=4, training=data(24))
    network = freeze(copy.deepcopy(supernet), chosen)
    assert close(judge.decided(chosen, recalibrated=False), reference(network.eval(), judge.validation))

    torch.optim.swa_utils.update_bn((inputs for inputs, _ in judge.calibration), network)
    assert close(judge.decided(chosen, recalibrated=True), reference(network.eval(), judge.validation))
    assert judge.decided(chosen, recalibrated=True) != judge.decided(chosen, recalibrated=False)


def test_a_relaxed_supernet_has_the_statistics_of_each_batch(supernet):
    judge = judge_of(supernet, *data(), classes=4)
    arch = ArchParams.from_model(supernet, init_std=1.0)
    score = judge.relaxed(draws(judge.generator(), arch=arch, sampler=Softmax(), temperature=1.0))

    training = copy.deepcopy(supernet).train()  # nothing but batch norm tells the modes apart here
    probs = arch.named_probs()
    by_key = {key: Gate(tuple(map(torch.tensor, row.values())), None) for key, row in probs.items()}
    with gates(choices(training), by_key):
        assert close(score, reference(training, judge.validation))


class Pretrained(Norms):
    """Its norm keeps the statistics that it came with."""

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


def test_a_norm_that_is_kept_in_evaluation_mode_keeps_its_statistics():
    supernet = Pretrained().train()
    supernet.norm.running_mean += 1
    supernet.norm.running_var *= 3
    judge, gates_of = judge_of(supernet, *data(), classes=4), {"op": Gate(None, 1), "drop": Gate(None, 1)}
    with gates(choices(supernet), gates_of):
        expected = reference(supernet, judge.validation)
    assert close(judge.relaxed(itertools.repeat(gates_of)), expected)
    for recalibrated in (False, True):
        assert close(judge.decided({"op": "b", "drop": "tanh"}, recalibrated=recalibrated), expected)


def test_of_a_sampler_that_draws_every_batch_has_a_draw_of_its_own():
    supernet = OneBest()
    judge = judge_of(supernet, *four_classes(64), classes=4, batches=8)
    arch = ArchParams.from_model(supernet, init_std=0.0)
    taken = draws(judge.generator(), arch=arch, sampler=GDAS(), temperature=1.0)
    drawn = [next(taken)["op"].drawn for _ in range(8)]
    assert len(set(drawn)) > 1
    gap = Gap.measure(judge, arch=arch, sampler=GDAS(), temperature=1.0, chosen={"op": "right"})
    # Nothing and its opposite: 1/4 by chance where all scores are equal (the first class wins), and never.
    per_batch = [
        {0: (labels == 0).float().mean().item(), 1: 0.0, 2: 1.0}[index]
        for index, (_, labels) in zip(drawn, judge.validation, strict=True)
    ]
    assert gap.relaxed == pytest.approx(sum(per_batch) / 8)
    assert (gap.derived, gap.recalibrated, gap.examples) == (1.0, 1.0, 64)


def test_the_gap_leaves_no_trace_in_a_sampler_that_counts_its_draws():
    class Counting(Softmax):
        def __init__(self):
            self.__dict__["seen"] = {"draws": 0}

        def __call__(self, logits, temperature, generator):
            self.seen["draws"] += 1
            return super().__call__(logits, temperature, generator)

    supernet, sampler = OneBest(), Counting()
    judge = judge_of(supernet, *four_classes(64), classes=4, batches=2)
    arch = ArchParams.from_model(supernet)
    Gap.measure(judge, arch=arch, sampler=sampler, temperature=1.0, chosen={"op": "right"})
    assert sampler.seen == {"draws": 0}


def test_the_gap_of_a_mixture_that_only_works_as_one():
    """Two halves of a solution, mixed: each alone sees one bit, and gets half of the classes right."""
    halves = [torch.tensor([[-1.0, 0], [1, 0], [-1, 0], [1, 0]]), torch.tensor([[0.0, -1], [0, -1], [0, 1], [0, 1]])]
    supernet = Choice({"low": nn.Linear(2, 4, bias=False), "high": nn.Linear(2, 4, bias=False)}, key="op")
    for op, matrix in zip(supernet.candidates, halves, strict=True):
        op.weight.data.copy_(matrix)
    arch = ArchParams.from_model(supernet, init_std=0.0)
    judge = judge_of(supernet, *four_classes(), classes=4)
    gap = Gap.measure(judge, arch=arch, sampler=Softmax(), temperature=1.0, chosen={"op": "low"})
    assert (gap.relaxed, gap.derived, gap.recalibrated) == (1.0, 0.5, 0.5)
    assert gap.metrics() == {"gap/relaxed": 1.0, "gap/derived": 0.5, "gap/recalibrated": 0.5}


def test_what_is_not_finite_stays_out_of_json():
    gap = Gap(0.5, float("nan"), float("inf"), 8)
    assert gap.to_dict() == {"relaxed": 0.5, "derived": None, "recalibrated": None, "examples": 8}


def test_examples_are_the_first_batches_from_a_number_on_and_no_more_than_there_are():
    inputs, labels = four_classes(32)
    inputs = torch.arange(32.0)[:, None].repeat(1, 2)
    whole = judge_of(OneBest(), inputs, labels, classes=4, batches=9)
    assert whole.examples == 32
    first, last = (judge_of(OneBest(), inputs, labels, classes=4, batches=2, start=start) for start in (0, 2))
    seen = [{int(x) for batch, _ in judge.validation for x in batch[:, 0]} for judge in (first, last)]
    assert [len(part) for part in seen] == [16, 16]
    assert seen[0].isdisjoint(seen[1])


def test_merit_orders_by_the_metric_then_the_loss_and_nan_is_worst():
    judge = judge_of(OneBest(), *four_classes(), classes=4, task=Classification())
    nan = float("nan")
    falling = [Score(0.75, 9.0, 4), Score(0.5, 1.0, 4), Score(0.5, 2.0, 4), Score(0.5, nan, 4), Score(nan, 1.0, 4)]
    assert sorted(falling, key=judge.merit) == falling[::-1]


def test_choices_of_another_space_are_refused(supernet):
    with pytest.raises(GenotypeError, match="'c' at op"):
        judge_of(supernet, *data(), classes=4).decided({"op": "c", "drop": None}, recalibrated=False)


def test_batch_statistics_are_put_back_after_an_error(supernet):
    supernet.eval()

    def fail():
        with batch_statistics(supernet):
            assert supernet.norm.training
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (supernet.norm.training, supernet.norm.track_running_stats) == (False, True)
