import math
from dataclasses import replace

import pytest
import torch

from nas.training.meter import Meter, StepResult


def result(loss, correct, examples, grad_norm):
    return StepResult(torch.tensor(loss), torch.tensor(correct), examples, torch.tensor(grad_norm))


def test_the_mean_norm_is_of_the_steps_that_a_scaler_takes():
    meter = Meter("accuracy")
    for norm in (math.inf, 2.0, math.nan, 4.0):
        meter.add(replace(result(1.0, 1, 1, norm), scaled=True))
    resumed = Meter("accuracy")
    resumed.load_state_dict(meter.state_dict(), device=torch.device("cpu"))
    assert meter.summary("w") == resumed.summary("w") == {"w/loss": 1.0, "w/accuracy": 1.0, "w/grad_norm": 3.0}


def test_loss_and_accuracy_are_means_over_examples_and_the_norm_over_steps():
    meter = Meter("accuracy")
    meter.add(result(1.0, 3, 6, 2.0))
    meter.add(result(4.0, 1, 2, 5.0))  # a smaller last batch counts less
    assert meter.summary("weights") == {
        "weights/loss": (1.0 * 6 + 4.0 * 2) / 8,
        "weights/accuracy": 4 / 8,
        "weights/grad_norm": 3.5,
    }
    assert meter.examples == 8


def test_sums_of_numbers_in_16_bits_do_not_stop_growing():
    meter, two = Meter("accuracy"), torch.tensor(2.0).bfloat16()
    for _ in range(600):
        meter.add(StepResult(two, two, 4, two))
    assert meter.summary("w") == {"w/loss": 2.0, "w/accuracy": 0.5, "w/grad_norm": 2.0}


def test_the_prefix():
    meter = Meter("accuracy")
    meter.add(result(1.0, 1, 1, 1.0))
    assert set(meter.summary("arch")) == {"arch/loss", "arch/accuracy", "arch/grad_norm"}


def test_an_empty_meter_divides_by_nothing():
    assert Meter("accuracy").summary("w") == {}


def test_it_does_not_read_the_device_before_the_summary(monkeypatch):
    def refuse(*args):
        raise AssertionError("synchronised")

    meter = Meter("accuracy")
    with monkeypatch.context() as patch:
        for name in ("__float__", "__int__", "__bool__", "item", "tolist", "cpu"):
            patch.setattr(torch.Tensor, name, refuse)
        for _ in range(3):
            meter.add(result(1.0, 1, 2, 1.0))
    assert meter.summary("w")["w/accuracy"] == 0.5


def test_it_leaves_the_results_alone():
    meter, first = Meter("accuracy"), result(1.0, 3, 6, 2.0)
    meter.add(first)
    meter.add(result(1.0, 3, 6, 2.0))
    assert [first.loss.item(), first.metric.item(), first.grad_norm.item()] == [1.0, 3, 2.0]


def test_a_loss_that_is_nan_shows():
    meter = Meter("accuracy")
    meter.add(result(float("nan"), 0, 2, 1.0))
    assert meter.summary("w")["w/loss"] != pytest.approx(0)
