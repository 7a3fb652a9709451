"""Regularisers with a cost target: where they pull the architecture, and what they refuse."""

import functools
import itertools

import custom_models
import pytest
import torch

import nas
from nas.errors import ConfigError
from nas.methods.cost_regularisers import Latency, Macs, Parameters
from nas.methods.latency_table import measure
from nas.spaces import NasBench201
from nas.spaces.custom import Custom
from nas.supernet.arch_params import ArchParams
from nas.supernet.genotype import Genotype
from nas.training.evaluate import count_parameters
from nas.training.schedule import Constant


def arch_of(space, spec, std=0.5):
    return ArchParams.from_model(space.supernet(spec), init_std=std, generator=torch.Generator().manual_seed(1))


def all_of(space, spec, name):
    return count_parameters(space.network(spec, Genotype(space.name, dict.fromkeys(space.options(spec), name))))


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_descent_takes_the_expected_cost_to_the_target(nas_bench_201, spec, where):
    arch = arch_of(nas_bench_201, spec)
    least, most = (all_of(nas_bench_201, spec, name) for name in ("skip_connect", "nor_conv_3x3"))
    target = least + where * (most - least)
    known = {"arch": arch, "space": nas_bench_201, "spec": spec}
    regulariser = Parameters(**known, target=target, weight=Constant(1.0))
    optimizer = torch.optim.Adam(arch.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        regulariser(arch, 0.0).backward()
        optimizer.step()
    assert regulariser.metrics(arch)["expected"] == pytest.approx(target, rel=0.02)
    assert regulariser(arch, 0.0).item() == pytest.approx(0, abs=0.02)


def test_the_size_is_that_of_retraining(nas_bench_201, spec):
    arch = arch_of(nas_bench_201, spec)
    larger = nas_bench_201.resized({"channels": 8, "cells": 2})
    known = {"arch": arch, "spec": spec, "weight": Constant(1.0), "target": 60_000}
    expected = Parameters(**known, space=larger).metrics(arch)["expected"]
    assert expected > 4 * 10_000
    assert all_of(larger, spec, "skip_connect") < expected < all_of(larger, spec, "nor_conv_3x3")


@pytest.mark.parametrize("target", [0, -1, 1, 1e12, float("nan")])
def test_a_target_out_of_reach_names_the_range(nas_bench_201, spec, target):
    least, most = (all_of(nas_bench_201, spec, name) for name in ("skip_connect", "nor_conv_3x3"))
    with pytest.raises(ConfigError) as error:
        Parameters(
            arch=arch_of(nas_bench_201, spec), space=nas_bench_201, spec=spec, target=target, weight=Constant(1.0)
        )
    assert str(error.value) == (
        f"regulariser.parameters.target is {target:,.10g} parameters, which no architecture of the space can reach, "
        f"expected {least:,} to {most:,} for the network that is retrained; set regulariser.parameters.target "
        "within this range, or change retrain.network"
    )


def test_nested_choices_of_a_custom_model(spec):
    space = Custom(factory=custom_models.nested)
    arch = arch_of(space, spec, std=0.0)
    known = {"arch": arch, "space": space, "spec": spec, "weight": Constant(1.0)}
    got = Macs(**known, target=20_000).metrics(arch)["expected"]
    pixels = 64  # stem 3x4 and "plain" 4x4 are 3x3 convolutions; the block has one, and a 1x1 or a 3x3 inside
    plain = 9 * 16 * pixels
    fixed = 9 * 12 * pixels + 4 * 3
    assert got == pytest.approx(fixed + plain / 3 + (plain + (16 * pixels + plain) / 2) / 3, rel=1e-6)


def test_a_table_that_was_measured_again_is_told_on_resumption(tmp_path):
    def measured(slower):
        space = NasBench201(channels=2, cells=1)
        images = nas.data.Synthetic(train=32, test=8, classes=2, size=8)
        spec, times = images.load().spec, itertools.cycle((1.0, 2.0, 3.0, 4.0))
        table = measure(space.build(spec, affine=True).eval(), spec.zeros(device="cpu", batch=1), device="cpu",
                        clock=lambda run: slower * next(times))  # fmt: skip
        table.save(tmp_path / "table.json")
        latency = functools.partial(Latency, table=str(tmp_path / "table.json"), target=45.0, weight=Constant(1.0))
        return functools.partial(
            nas.search, space, images, directory=tmp_path / "run", regulariser={"latency": latency}, epochs=1,
            batch_size=8, device="cpu", progress=False, gap_batches=0, tracker=nas.storage.JsonLines,
        )  # fmt: skip

    measured(1.0)()
    measured(1.0)(resume=True)
    with pytest.raises(ConfigError, match=r"^the table of latencies has other times than when .*; give the same again"):
        measured(1.1)(resume=True)
    measured(1.1)(resume=True, may_change=["regulariser.latency"])
