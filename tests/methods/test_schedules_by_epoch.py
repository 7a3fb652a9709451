"""Schedules of the published codes, which change once an epoch, compared with their formulas."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from nas.cli.stages.retrain import options
from nas.errors import ConfigError
from nas.methods.regulariser import BetaDecay
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice
from nas.training.schedule import Cosine, CosineByEpoch, LinearByEpoch, learning_rate, progress


@pytest.mark.parametrize("epochs", [1, 2, 50, 250])
def test_the_cosine_by_epoch_is_that_of_torch(epochs):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.025)
    published = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=0.001)
    schedule = CosineByEpoch(start=0.025, end=0.001)
    for epoch in range(epochs):
        expected = optimizer.param_groups[0]["lr"]
        for step in (0, 3, 9):
            lr = learning_rate(schedule, epoch, step, steps=10, epochs=epochs)
            assert lr == pytest.approx(expected, rel=1e-12)
            assert lr == pytest.approx(0.001 + 0.024 * (1 + math.cos(math.pi * epoch / epochs)) / 2, rel=1e-12)
        optimizer.step()
        published.step()


def test_the_warm_up_of_gdas_rises_by_step_and_the_cosine_spans_the_other_epochs():
    schedule = CosineByEpoch(start=0.025, warmup_epochs=5)
    for epoch, step in ((0, 0), (0, 50), (2, 25), (4, 99)):
        expected = 0.025 * (epoch + step / 100) / 5
        assert learning_rate(schedule, epoch, step, steps=100, epochs=300) == pytest.approx(expected, rel=1e-12)
    for epoch in (5, 6, 152, 299):
        expected = 0.025 * (1 + math.cos(math.pi * (epoch - 5) / 295)) / 2
        assert learning_rate(schedule, epoch, 99, steps=100, epochs=300) == pytest.approx(expected, rel=1e-12)


def test_a_cosine_may_be_longer_than_the_run():
    schedule = CosineByEpoch(start=0.025, end=0.001, epochs=50)
    assert learning_rate(schedule, 24, 0, steps=10, epochs=25) == pytest.approx(
        0.001 + 0.024 * (1 + math.cos(math.pi * 24 / 50)) / 2, rel=1e-12
    )


def test_other_schedules_move_by_step_as_they_did():
    schedule = Cosine(start=0.025, end=0.001)
    assert learning_rate(schedule, 3, 7, steps=10, epochs=5) == schedule(progress(37, 50))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_epochs": -1}, "warmup_epochs must be >= 0, got -1"),
        ({"warmup_epochs": 5, "epochs": 5}, "must be more than its 5 warmup_epochs, got 5"),
    ],
)
def test_epochs_that_cannot_work(arguments, message):
    with pytest.raises(ConfigError, match=message):
        CosineByEpoch(start=1.0, **arguments)


@pytest.mark.parametrize("epochs", [1, 2, 50, 100, 137])
def test_beta_decay_by_epoch_has_half_a_unit_more_every_epoch(epochs):
    arch = ArchParams.from_model(Choice({name: torch.nn.Identity() for name in "abc"}), init_std=1.0)
    term = BetaDecay(weight=LinearByEpoch(per_epoch=0.5, epochs=epochs))
    smooth = arch.logits.detach().exp().sum(-1).log().mean()
    for epoch in range(epochs):
        torch.testing.assert_close(term(arch, progress(epoch, epochs)).detach(), 0.5 * epoch * smooth)


@pytest.mark.parametrize(
    ("setting", "last"),
    [({}, 0.2), ({"drop_path_reached": True}, 0.2), ({"drop_path_reached": False}, 0.2 * 599 / 600)],
)
def test_the_last_rate_of_drop_path(setting, last):
    zeros = dict.fromkeys(
        ("grad_clip", "cutout", "auxiliary_weight", "label_smoothing", "mixup", "cutmix", "average"), 0
    )
    numbers = {"epochs": 600, "batch_size": 96, "accumulation": 1, "drop_path": 0.2, "network": {}}
    cfg = OmegaConf.create(zeros | numbers | setting)
    assert options(cfg).last_drop_path == pytest.approx(last, rel=1e-12)
