"""Regularisers with a cost target: where they pull the architecture, and what they refuse."""

import custom_models
import pytest
import torch

from nas.errors import ConfigError
from nas.methods.cost_regularisers import Macs, Parameters
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
