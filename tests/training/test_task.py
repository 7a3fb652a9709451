import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nas.data.spec import DataSpec
from nas.errors import ConfigError, DataError, SpaceError
from nas.training.task import Classification, Custom, Metric, Regression

VALUES = DataSpec(name="values", input_shapes=((3,),), target_shape=())
CLASSES = replace(VALUES, name="classes", class_names=("a", "b", "c"))


def test_classification_by_hand():
    scores = torch.tensor([[math.log(2), 0.0, 0.0], [0.0, 0.0, math.log(2)]])  # p = 1/2, 1/4, 1/4
    labels = torch.tensor([0, 1])
    task = Classification()
    assert task.loss(scores, labels).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert task.measure(scores, labels).tolist() == [True, False]
    assert task.metric == Metric("accuracy", higher_is_better=True, percent=True)


def test_classification_of_every_pixel():
    labels = torch.tensor([[0, 1], [2, 2]])
    scores = F.one_hot(torch.tensor([[0, 1], [2, 0]]), 3).movedim(-1, 1).float()
    assert Classification().measure(scores, labels).tolist() == [1.0, 0.5]
    Classification().check(scores, labels, CLASSES)
    with pytest.raises(SpaceError, match=r"shape \(2, 3\) for 2 examples, expected \(2, 3, 2\)"):
        Classification().check(scores[:, :, 0], labels, CLASSES)


def test_pixels_that_are_ignored_are_in_neither_loss_nor_accuracy():
    labels = torch.tensor([[0, -100, 1, 2], [2, 2, -100, -100]])
    scores = F.one_hot(torch.tensor([[0, 1, 1, 0], [2, 0, 2, 0]]), 3).movedim(-1, 1).float()
    assert Classification().measure(scores, labels).tolist() == pytest.approx([2 / 3, 1 / 2])
    right, wrong = math.log(math.e + 2) - 1, math.log(math.e + 2)
    assert Classification().loss(scores, labels).item() == pytest.approx((3 * right + 2 * wrong) / 5)
    probabilities = F.one_hot(labels.clamp_min(0), 3).movedim(-1, 1).float()
    assert Classification().measure(scores, probabilities).tolist() == [0.5, 0.5]


def test_regression_by_hand():
    outputs, targets = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])
    task = Regression()
    assert task.loss(outputs, targets).item() == pytest.approx((1 + 4) / 2)
    assert task.measure(outputs, targets).tolist() == [1.0, 2.0]
    several = torch.stack([outputs, targets], dim=1)
    assert task.measure(several, torch.zeros(2, 2)).tolist() == [1.5, 3.0]
    assert not task.metric.higher_is_better


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "spec", "error", "message"),
    [
        (Classification(), torch.zeros(2, 3), torch.zeros(2), VALUES, DataError, "got torch.float32 of shape"),
        (Classification(), torch.zeros(2, 4), torch.zeros(2).long(), CLASSES, SpaceError, r"expected \(2, 3\)"),
        (Classification(), torch.zeros(2), torch.zeros(2).long(), CLASSES, SpaceError, r"outputs of shape \(2,\)"),
        (Regression(), torch.zeros(2), torch.zeros(2).long(), CLASSES, DataError, "needs floats as targets"),
        (Regression(), torch.zeros(2, 1), torch.zeros(2), VALUES, SpaceError, r"\(2, 1\), expected .* \(2,\)"),
    ],
)
def test_what_does_not_suit_the_task(task, outputs, targets, spec, error, message):
    with pytest.raises(error, match=message):
        task.check(outputs, targets, spec)


def test_a_task_of_ones_own():
    task = Custom(loss=F.l1_loss, metric=lambda a, b: (a == b).float(), name="exact", higher_is_better=True)
    outputs, targets = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])
    task.check(outputs, targets, VALUES)
    assert task.loss(outputs, targets).item() == 1.0
    assert task.measure(outputs, targets).tolist() == [1.0, 0.0]
    assert task.metric == Metric("exact", higher_is_better=True)


@pytest.mark.parametrize(
    ("loss", "metric", "message"),
    [
        (lambda a, b: a - b, torch.sub, r"task\.loss returned shape \(2,\) for 2 examples, expected .* \(\)"),
        (lambda a, b: 1.0, torch.sub, r"task\.loss returned float"),
        (F.l1_loss, F.l1_loss, r"task\.metric returned shape \(\) for 2 examples, expected .* \(2,\)"),
    ],
)
def test_functions_that_return_something_else(loss, metric, message):
    with pytest.raises(ConfigError, match=message):
        Custom(loss=loss, metric=metric, name="m", higher_is_better=False).check(torch.ones(2), torch.ones(2), VALUES)


@pytest.mark.parametrize("task", [Classification(), Regression()])
def test_nothing_waits_for_the_device(task, monkeypatch):
    def refuse(*args):
        raise AssertionError("synchronised")

    outputs = torch.randn(4, 3) if isinstance(task, Classification) else torch.randn(4)
    targets = torch.tensor([0, 1, 2, 0]) if isinstance(task, Classification) else torch.randn(4)
    with monkeypatch.context() as patch:
        for name in ("__float__", "__int__", "__bool__", "item", "tolist", "cpu"):
            patch.setattr(torch.Tensor, name, refuse)
        task.loss(outputs, targets)
        task.measure(outputs, targets).sum()


def test_how_a_metric_is_shown():
    assert Metric("accuracy", higher_is_better=True, percent=True).show(0.9753) == "97.53%"
    assert Metric("error", higher_is_better=False).show(0.012345) == "0.01235"


@pytest.mark.parametrize("name", ["loss", "grad_norm", "examples", ""])
def test_a_metric_has_a_name_of_its_own(name):
    """It would stand in the place of the loss."""
    with pytest.raises(ConfigError, match=f"the metric is called '{name}', expected another name than loss, grad_norm"):
        Custom(loss=F.mse_loss, metric=F.mse_loss, name=name, higher_is_better=True)
