"""Trains in two processes whose shares of a batch take different branches, with assertions in each process.

A script that test_distributed.py starts.
"""

import copy
import functools
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from searchers import build_searcher
from torch import nn

import nas
from nas.cli import torchrun
from nas.errors import DivergenceError
from nas.methods.first_order import FirstOrder
from nas.methods.sampler import GDAS, Softmax
from nas.methods.second_order import SecondOrder
from nas.runtime import distributed
from nas.runtime.rng import seed_everything
from nas.runtime.runtime import seed_layers
from nas.spaces.cell import DropPath, set_drop_path
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice
from nas.training.hooks import Hook
from nas.training.loop import RetrainState, TrainingStep
from nas.training.task import Custom

STEPS, BATCH, CLASSES = 10, 16, 3
TASK = Custom(
    loss=functools.partial(F.cross_entropy, weight=[1.0, 5.0, 0.5], ignore_index=7),
    metric=lambda outputs, targets: (outputs.argmax(1) == targets).double(),
    name="right",
    higher_is_better=True,
)


class Experts(nn.Module):
    """Each example is handled by one expert. The last expert never gets an example."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.experts = nn.ModuleList(nn.Linear(6, width) for width in (6, 6, 6))
        self.wide = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 6))  # another size than the other experts
        self.choice = Choice({"tanh": nn.Tanh(), "linear": nn.Linear(6, 6)})
        self.head = nn.Linear(6, CLASSES)
        self.double()

    def forward(self, x):
        h = self.frozen(x)
        out = torch.zeros_like(h)
        key = x[:, 0]
        for expert, rows in (
            (self.experts[0], key > 1),
            (self.wide, (key > 0) & (key <= 1)),
            (self.experts[1], key <= 0),
            (self.experts[2], key.isnan()),
        ):
            if rows.any():
                out[rows] = expert(h[rows])
        return self.head(self.choice(out))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.into, self.out = nn.Linear(4, 6), nn.Linear(6, CLASSES)
        self.drop, self.drop_path = nn.Dropout(0.5), DropPath()
        self.drawn = []
        self.register_buffer("seen", torch.zeros(4))  # the mean of the process's own inputs
        self.double()

    def forward(self, x):
        ones = torch.ones(len(x), 6, dtype=x.dtype)
        mask, path = self.drop(ones), self.drop_path(ones[:, :1, None, None]).flatten(1)
        noise = (random.random(), np.random.rand())  # noqa: NPY002  the global one
        self.seen.lerp_(x.mean(0), 0.1)
        self.drawn.append((*noise, *mask.flatten().tolist(), *path.flatten().tolist()))
        return self.out(self.into(x - self.seen).tanh() * mask * path * sum(noise))


class StopsInTheSecond(Hook):
    def __init__(self, moment):
        setattr(self, moment, functools.partial(self.stop, moment))

    def stop(self, moment, state):
        state.stopped = moment if distributed.share().index else None


def batches():
    """Returns the batches of one process. In the first half of each, few labels count, and all inputs are negative."""
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        x = torch.randn(BATCH, 4, generator=generator, dtype=torch.float64)
        x[: BATCH // 2, 0] = -x[: BATCH // 2, 0].abs()
        x[BATCH // 2 :, 0] = x[BATCH // 2 :, 0].abs()
        y = torch.randint(CLASSES, (BATCH,), generator=generator)
        y[: BATCH // 2 - 1] = 7  # with two parts, no label counts in the first part of the first process
        y[-(step % 4 + 1) :] = 7
        yield x, y


def mine(batch):
    share = distributed.share()
    return tuple(share.rows(tensor) for tensor in batch)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def retrained(accumulation):
    model = Experts()
    model.choice = model.choice.candidates[1]
    step, state = TrainingStep(accumulation=accumulation, grad_clip=1.0), RetrainState(model, sgd(model.parameters()))
    losses = [step(state, mine(batch), TASK).loss.item() for batch in batches()]
    return model, losses


def searched(kind, sampler, **options):
    model = Experts()
    generator = torch.Generator().manual_seed(3)
    arch = ArchParams.from_model(model, generator=generator).double()
    searcher = build_searcher(
        kind,
        supernet=model,
        arch=arch,
        task=TASK,
        sampler=sampler,
        weight_optim=sgd(model.parameters()),
        generator=generator,
        **options,
    )
    losses = []
    for batch in batches():
        some = mine(batch)
        losses.append(searcher.weight_step(some, 1.0).loss.item())
        losses.append(searcher.arch_step(some, mine(tuple(tensor.flip(0) for tensor in batch)), 1.0).loss.item())
    model.logits = arch.logits
    return model, losses


WAYS = {
    "retraining": functools.partial(retrained, 1),
    "retraining in parts": functools.partial(retrained, 2),
    "first order": functools.partial(searched, FirstOrder, GDAS()),
    "difference": functools.partial(searched, SecondOrder, Softmax(), method="difference"),
    "exact": functools.partial(searched, SecondOrder, Softmax(), method="exact"),
}


def noisy(state, start, end):
    for batch in list(batches())[start:end]:
        TrainingStep()(state, mine(batch), TASK)
    return [parameter.detach().clone() for parameter in state.network.parameters()]


def fresh():
    model = Noisy()
    set_drop_path(model, 0.5)
    return RetrainState(model, sgd(model.parameters()))


def main(directory, expected):
    with distributed.joined():
        rank = distributed.share().index
        for name, train in WAYS.items():
            (model, losses), (alone, losses_alone) = train(), expected[name]
            assert losses == pytest.approx(losses_alone, abs=1e-6), name
            pairs = list(zip(model.named_parameters(), alone.parameters(), strict=True))
            if not rank:
                worst = max((weight - other).abs().max().item() for (_, weight), other in pairs)
                print(f"{name}: weights after {STEPS} steps within {worst:.1e} of those of one process")
            for (path, weight), other in pairs:
                assert torch.allclose(weight, other, rtol=0, atol=1e-6), (name, path)
            initial = dict(Experts().named_parameters())
            assert torch.equal(model.experts[2].weight, initial["experts.2.weight"])  # no weight decay without examples
            assert not torch.equal(model.wide[0].weight, initial["wide.0.weight"])
            distributed.check_equal_weights(dict(model.named_parameters()))

        # A hook of the second process alone ends the search, in the middle of an epoch or after it.
        inputs, targets = next(batches())
        for moment in ("after_step", "after_epoch"):
            hooks = [StopsInTheSecond(moment)]
            options = {"epochs": 3, "batch_size": 4, "task": TASK, "device": "cpu", "hooks": hooks}
            found = nas.search(Experts().float(), (inputs, targets), **options)
            assert found.stopped == moment
            assert len(set(distributed.of_all(found.genotype.to_json()))) == 1

        # One weight of one process differs by one bit.
        weights = {"a": torch.zeros(3), "b": torch.arange(9.0).bfloat16(), "c": torch.ones(2, dtype=torch.complex64)}
        distributed.check_equal_weights(weights)
        if rank:
            weights["b"] = weights["b"].flip(0)
        with pytest.raises(DivergenceError, match=r"1 of 3 weights are .* the same in the 2 processes, .* is b,"):
            distributed.check_equal_weights(weights)

        # Dropout: masks and buffers of the process's own, equal weights, and the same bits after a resumption.
        state = fresh()
        seed_everything(5)
        seed_layers(5)
        noisy(state, 0, 5)
        saved = copy.deepcopy(state.state_dict())
        weights = noisy(state, 5, STEPS)
        distributed.check_equal_weights(dict(state.network.named_parameters()))
        first, second = distributed.of_all(state.network.drawn)
        for one, other in zip(first, second, strict=True):
            assert one[0] != other[0]
            assert one[1] != other[1]
            assert one[2:50] != other[2:50]
        assert [one[50:] for one in first] != [one[50:] for one in second]
        resumed = fresh()
        resumed.load_state_dict(saved, source="memory")
        assert all(map(torch.equal, noisy(resumed, 5, STEPS), weights))
        assert resumed.network.drawn == state.network.drawn[5:]

        # After a checkpoint of one process, the checkpoint decides the random numbers of the second process.
        del saved["random"]["others"]
        for _ in range(2):
            fresh().load_state_dict(saved, source="memory")
            drawn = distributed.of_all(torch.rand(3))
            assert not torch.equal(*drawn)
        fresh().load_state_dict(saved, source="memory")
        assert torch.equal(torch.rand(3), drawn[rank])
        (directory / f"done {rank}").touch()


if __name__ == "__main__":
    alone = {name: train() for name, train in WAYS.items()}  # before this process joins the other
    assert os.environ["WORLD_SIZE"] == "2"
    with torchrun.left_at_once():
        main(Path(sys.argv[1]), alone)
