"""The training step and its options, each compared with its formula."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from no_waiting import no_waiting
from torch import nn

from nas.runtime.nonfinite import Guard
from nas.spaces.cell import DropPath
from nas.training.ema import Average
from nas.training.hooks import Hook
from nas.training.loop import RetrainPlan, RetrainState, TrainingStep, parts, retrain, smoothed
from nas.training.meter import Meter
from nas.training.schedule import Constant, Linear
from nas.training.task import Classification, Regression

CLASSES = 3


def network(seed=0):
    """Without batch statistics, and with an auxiliary head where it is asked for."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, CLASSES))


class WithHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.second = network(0), network(1)

    def forward(self, x):
        return self.main(x), self.second(x)


def batch(size=10):
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, 3, 2, 2, generator=generator)
    return images, torch.randint(CLASSES, (size,), generator=generator)


def state_of(model, lr=0.1, **options):
    average = Average(model, decay=options["decay"]) if "decay" in options else None
    return RetrainState(model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), average)


def gradients(step, model, some):
    """Of the weights, by a step of plain gradient descent."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    result = step(RetrainState(model, torch.optim.SGD(model.parameters(), lr=1.0)), some, Classification())
    return [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)], result


# -- label smoothing


@pytest.mark.parametrize("amount", [0.1, 0.5])
def test_smoothing_is_its_closed_form(amount):
    outputs, labels = torch.randn(8, CLASSES), torch.randint(CLASSES, (8,))
    log_probs = outputs.log_softmax(1)
    # (1 - a) * cross-entropy + a * the mean of -log p over the classes
    expected = (1 - amount) * F.nll_loss(log_probs, labels) - amount * log_probs.mean()
    loss = TrainingStep(label_smoothing=amount).loss(outputs, labels, Classification())
    assert torch.allclose(loss, expected, atol=1e-6)
    assert torch.allclose(loss, F.cross_entropy(outputs, labels, label_smoothing=amount), atol=1e-6)


def test_smoothing_of_mixed_labels_and_of_pixels():
    mixed = torch.tensor([[0.75, 0.25, 0.0]])
    expected = torch.tensor([[0.9 * 0.75 + 0.1 / 3, 0.9 * 0.25 + 0.1 / 3, 0.1 / 3]])
    assert torch.allclose(smoothed(mixed, amount=0.1, classes=3), expected)
    pixels = torch.randint(CLASSES, (2, 4, 5))
    probabilities = smoothed(pixels, amount=0.3, classes=CLASSES)
    assert probabilities.shape == (2, CLASSES, 4, 5)
    assert torch.equal(probabilities.argmax(1), pixels)
    outputs = torch.randn(2, CLASSES, 4, 5)
    expected = F.cross_entropy(outputs, pixels, label_smoothing=0.3)
    assert torch.allclose(Classification().loss(outputs, probabilities), expected, atol=1e-6)


def test_smoothing_leaves_the_metric_alone():
    some = batch()
    plain = TrainingStep()(state_of(network()), some, Classification())
    smooth = TrainingStep(label_smoothing=0.2)(state_of(network()), some, Classification())
    assert plain.metric == smooth.metric
    assert plain.loss != smooth.loss


def test_a_prediction_earns_the_part_of_its_class_in_a_mixed_label():
    outputs = F.one_hot(torch.tensor([0, 1, 2]), 3).float()
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.7, 0.3, 0.0], [0.7, 0.3, 0.0]])
    assert Classification().measure(outputs, targets).tolist() == pytest.approx([0.7, 0.3, 0.0])
    hard = F.one_hot(torch.tensor([0, 2, 2]), 3).float()
    assert Classification().measure(outputs, hard).tolist() == [1.0, 0.0, 1.0]


# -- auxiliary head, clipping


def test_the_auxiliary_loss_is_weighted():
    images, labels = batch()
    model = WithHead()
    expected = F.cross_entropy(model.main(images), labels) + 0.4 * F.cross_entropy(model.second(images), labels)
    result = TrainingStep(auxiliary_weight=0.4)(state_of(model), (images, labels), Classification())
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert result.metric == (WithHead().main(images).argmax(1) == labels).sum()


def test_the_gradient_is_clipped_and_its_norm_is_that_before():
    free, result = gradients(TrainingStep(), network(), batch())
    norm = math.sqrt(sum(float(g.square().sum()) for g in free))
    assert result.grad_norm.item() == pytest.approx(norm, rel=1e-5)
    clipped, result = gradients(TrainingStep(grad_clip=norm / 4), network(), batch())
    assert result.grad_norm.item() == pytest.approx(norm, rel=1e-5)
    for a, b in zip(clipped, free, strict=True):
        assert torch.allclose(a, b / 4, atol=1e-6)


# -- accumulation


@pytest.mark.parametrize("count", [2, 3, 10])
def test_accumulation_gives_what_the_whole_batch_gives(count):
    """Of 10 examples in 3 parts, too, though a mean of the parts' means would not."""
    options = {"label_smoothing": 0.1, "grad_clip": 0.5}
    whole, split = state_of(network(), decay=0.9), state_of(network(), decay=0.9)
    for number in range(5):
        some = batch(10 + number % 2)
        one = TrainingStep(**options)(whole, some, Classification())
        many = TrainingStep(**options, accumulation=count)(split, some, Classification())
        assert many.loss.item() == pytest.approx(one.loss.item(), rel=1e-5)
        assert many.grad_norm.item() == pytest.approx(one.grad_norm.item(), rel=1e-5)
        assert (many.metric, many.examples) == (one.metric, one.examples)
    for a, b in zip(whole.result.parameters(), split.result.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_parts_are_the_batch_in_order():
    inputs, targets = (torch.arange(7.0), torch.arange(14.0).view(7, 2)), torch.arange(7)
    split = list(parts(inputs, targets, 3))
    assert [len(labels) for _, labels in split] == [3, 2, 2]
    assert torch.equal(torch.cat([labels for _, labels in split]), targets)
    for position, tensor in enumerate(inputs):
        assert torch.equal(torch.cat([some[position] for some, _ in split]), tensor)
    (alone, _), *_ = parts(inputs[0], targets, 7)
    assert alone.tolist() == [0.0]


def test_accumulation_of_a_regression():
    model = nn.Linear(3, 1)
    other = copy.deepcopy(model)
    inputs, targets = torch.randn(5, 3), torch.randn(5, 1)
    one = TrainingStep()(state_of(model), (inputs, targets), Regression())
    many = TrainingStep(accumulation=2)(state_of(other), (inputs, targets), Regression())
    assert many.loss.item() == pytest.approx(one.loss.item(), rel=1e-6)
    assert torch.allclose(model.weight, other.weight, atol=1e-6)


# -- the average of the weights


def test_the_average_is_the_result_and_training_goes_on_with_the_weights():
    averaged, plain = state_of(network(), decay=0.9), state_of(network())
    expected = [parameter.detach().clone() for parameter in averaged.network.parameters()]
    for number in range(4):
        kept = min(0.9, (1 + number) / (10 + number))
        for state in (averaged, plain):
            TrainingStep()(state, batch(), Classification())
        for old, parameter in zip(expected, averaged.network.parameters(), strict=True):
            old.mul_(kept).add_(parameter.detach(), alpha=1 - kept)
    assert all(map(torch.equal, averaged.network.parameters(), plain.network.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(averaged.result.parameters(), expected, strict=True))
    assert not torch.equal(averaged.result[1].weight, averaged.network[1].weight)
    saved = averaged.state_dict()
    assert torch.equal(saved["network"]["1.weight"], averaged.result[1].weight)
    assert torch.equal(saved["trained_network"]["1.weight"], averaged.network[1].weight)
    assert saved["average_updates"] == 4
    assert plain.result is plain.network
    assert "trained_network" not in plain.state_dict()


# -- the step as a whole


def test_nothing_in_a_step_waits_for_the_device(monkeypatch):
    def refuse(*args):
        raise AssertionError("synchronised")

    step = TrainingStep(auxiliary_weight=0.4, grad_clip=1.0, label_smoothing=0.1, accumulation=2)
    state, some, meter = state_of(WithHead(), decay=0.9), batch(), Meter("accuracy")
    state.guard = Guard(late=True)  # as on a GPU
    with monkeypatch.context() as patch:
        for name in ("__float__", "__int__", "__bool__", "__index__", "item", "tolist", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, refuse)
        for _ in range(2):
            meter.add(step(state, some, Classification()))
    assert meter.summary("w")["w/loss"] > 0


class Kept(Hook):
    """Keeps the metrics of every epoch."""

    def __init__(self):
        self.metrics = []

    def after_epoch(self, state):
        self.metrics.append(state.metrics)


class Batches:
    """Stands for a loader."""

    def __len__(self):
        return 2

    def epoch(self, epoch, *, start=0):
        return iter([batch(8), batch(6)][start:])


def test_schedules_by_step_and_by_epoch():
    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.drop_path = network(), DropPath()
            self.rates = []

        def forward(self, x):
            assert self.training
            self.rates.append(float(self.drop_path.rate))
            return self.inner(x)

    state, kept, rates = state_of(Watch().eval()), Kept(), []
    retrain(
        state,
        task=Classification(),
        loader=Batches(),
        plan=RetrainPlan(
            epochs=3,
            lr=lambda progress: rates.append(progress) or 0.1 * (1 - progress),
            drop_path=Linear(0.0, 0.2),
        ),
        step=TrainingStep(),
        hooks=[kept],
    )
    assert rates == pytest.approx([k / 5 for k in range(6)])
    assert state.network.rates == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.2, 0.2])
    assert [metrics["lr/weights"] for metrics in kept.metrics] == pytest.approx([0.08, 0.04, 0.0])
    assert state.epoch == 3


def test_it_goes_on_where_it_stopped():
    def trained(*lengths):
        state = state_of(network(), decay=0.9)
        for length in lengths:
            retrain(
                state,
                task=Classification(),
                loader=Batches(),
                plan=RetrainPlan(epochs=length, lr=Constant(value=0.1), drop_path=Constant(value=0.0)),
                step=TrainingStep(),
            )
        return state.state_dict()

    one, two = trained(4), trained(1, 4)
    for name in ("network", "trained_network"):
        assert all(torch.equal(one[name][key], two[name][key]) for key in one[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_does_not_wait_for_the_gpu():
    step = TrainingStep(auxiliary_weight=0.4, grad_clip=1.0, label_smoothing=0.1, accumulation=2)
    state = state_of(WithHead().cuda(), decay=0.9)
    state.guard = Guard(late=True)  # as on a GPU
    images, labels = (tensor.cuda() for tensor in batch())
    step(state, (images, labels), Classification())  # which makes what later ones have
    with no_waiting():
        step(state, (images, labels), Classification())
