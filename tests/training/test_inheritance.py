"""Derived networks that start from the weights of the supernet."""

import functools
import itertools

import pytest
import torch
from torch import nn

import nas
from nas.data import given
from nas.data.inputs import each
from nas.errors import SpaceError
from nas.runtime.runtime import Runtime
from nas.spaces import Darts, NasBench201
from nas.spaces.custom import Custom
from nas.supernet.choice import LEFT_OUT, Gate, choices, gates
from nas.training.batch_norm import recalibrate
from nas.training.inheritance import SupernetWeights
from nas.training.job import Job
from nas.training.retrain_job import CALIBRATION, RetrainJob
from nas.training.retrain_options import RetrainOptions, RetrainParts
from nas.training.task import Classification

OFF = ("grad_clip", "drop_path", "auxiliary_weight", "label_smoothing", "mixup", "cutmix", "average", "cutout")
OPTIONS = dict.fromkeys(OFF, 0) | {"epochs": 1, "batch_size": 8, "accumulation": 1}


def residual(affine=True):
    width = 6
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nas.Choice({"keep": nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)), "skip": nn.Identity()}),
        nas.Choice({"wide": nn.Conv2d(width, width, 3, padding=1), "thin": nn.Conv2d(width, width, 1)}),
        nn.BatchNorm2d(width, affine=affine),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )


def darts(*ops):
    return Darts(ops={name: Darts().ops[name] for name in ops}, channels=4, cells=3)


def job(space, **network):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (24, 3, 8, 8), generator=generator, dtype=torch.uint8)
    data = given.training((pixels, torch.arange(24) % 4), given.Reading())
    common = Job(runtime=Runtime(device="cpu"), space=space, task=Classification(), data=data)
    parts = RetrainParts(optim=functools.partial(torch.optim.SGD, lr=0.1), lr=nas.training.Constant)
    return RetrainJob(common, RetrainOptions(**OPTIONS, start="supernet", network=network), parts)


def trained(supernet, loader):
    """Its weights and its statistics moved, each choice by all of its candidates in turn."""
    found = choices(supernet.train())
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1)
    for number, (inputs, targets) in enumerate(itertools.islice(itertools.cycle(loader.epoch(0)), 4)):
        optimizer.zero_grad()
        with gates(found, {key: Gate(None, number % len(sharing[0].names)) for key, sharing in found.items()}):
            nn.functional.cross_entropy(supernet(*each(inputs)), targets).backward()
        optimizer.step()
    return supernet


SPACES = {
    "model": Custom(factory=residual),
    "nas_bench_201": NasBench201(channels=4, cells=1),
    "entangled": NasBench201(channels=4, cells=1, entangled=True),
    "darts": Darts(
        ops={name: Darts().ops[name] for name in ("none", "skip_connect", "sep_conv_3x3")}, channels=4, cells=3
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_the_derived_network_gives_the_outputs_of_the_supernet_to_the_bit(name):
    torch.manual_seed(0)
    space = SPACES[name]
    retrain_job = job(space)
    spec = retrain_job.job.data.spec
    supernet = trained(retrain_job.job.runtime.place(space.supernet(spec)), retrain_job.unmixed)
    arch = nas.ArchParams.from_model(supernet, init_std=1.0, generator=torch.Generator().manual_seed(1))
    deriver = nas.methods.TopPredecessors() if name == "darts" else nas.methods.Argmax(exclude=["none"])
    chosen = deriver(arch)
    genotype = nas.Genotype(space.name, chosen)
    network = retrain_job.started(genotype, SupernetWeights.of(supernet)).eval()

    found = choices(supernet.eval())
    index = {key: sharing[0].names.index(chosen[key]) for key, sharing in found.items() if chosen[key] is not None}
    by_key = {key: Gate(None, index[key]) if key in index else LEFT_OUT for key in found}

    def run():
        for inputs, _ in itertools.islice(retrain_job.unmixed.epoch(0), CALIBRATION):
            supernet(*each(inputs))

    with torch.no_grad(), gates(found, by_key):
        recalibrate(supernet, run)
        inputs, _ = next(retrain_job.unmixed.epoch(0))
        assert torch.equal(supernet(*each(inputs)), network(*each(inputs)))
    fresh = space.network(spec, genotype).eval()
    assert not torch.equal(fresh(*each(inputs)), network(*each(inputs)))


@pytest.mark.parametrize(
    ("space", "network", "message"),
    [
        (SPACES["nas_bench_201"], {"channels": 8}, r"is \(4, 4, 1, 1\) in the supernet and \(8, 8, 1, 1\) in"),
        (SPACES["nas_bench_201"], {"cells": 2}, "is .* in the supernet and .* in the network that is retrained; leave"),
        (darts("skip_connect", "max_pool_3x3"), {}, "in the supernet and not there in the network that is retrained"),
    ],
    ids=["wider", "deeper", "pooling without norm"],
)  # fmt: skip
def test_another_network_is_refused_before_the_search(space, network, message):
    with pytest.raises(SpaceError, match=message) as told:
        job(space, **network)
    assert "\n" not in str(told.value)


def test_weights_of_a_space_of_another_size_are_refused():
    small, wide = (NasBench201(channels=channels, cells=1) for channels in (2, 4))
    wide_job = job(wide)
    spec = wide_job.job.data.spec
    weights = SupernetWeights.of(small.supernet(spec))
    genotype = nas.Genotype(wide.name, dict.fromkeys(choices(wide.supernet(spec)), "skip_connect"))
    with pytest.raises(SpaceError, match=r"the weights in the search do not fit .*; set space as in the search, sizes"):
        wide_job.started(genotype, weights)
