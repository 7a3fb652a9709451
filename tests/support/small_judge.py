"""A judge with hand-made examples, and models whose best architecture is known."""

import torch
from torch import nn

from nas.data.loader import Loader
from nas.data.spec import DataSpec
from nas.data.split import TensorSplit
from nas.methods.supernet_score import Judge
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice
from nas.training.task import Classification

BATCH = 8


def loader(inputs, targets, *, classes, seed=0, augment=None):
    spec = DataSpec(
        name="made",
        input_shapes=(tuple(inputs.shape[1:]),),
        class_names=tuple("abcdefgh"[:classes]) if classes else (),
    )
    return Loader(
        TensorSplit(inputs, targets),
        spec=spec,
        batch_size=BATCH,
        device=torch.device("cpu"),
        seed=seed,
        augment=augment,
        shuffle=True,
        drop_last=True,
        what="batch_size",
    )


def judge_of(supernet, inputs, targets, *, classes, task=None, batches=4, training=None, **arguments):
    return Judge(
        supernet=supernet,
        task=task or Classification(),
        weight_loader=loader(*(training or (inputs, targets)), classes=classes, seed=1),
        validation_loader=loader(inputs, targets, classes=classes),
        batches=batches,
        seed=5,
        **arguments,
    )


def arch_with(supernet, **logits):
    """Returns architecture parameters with these logits, choice key -> logits."""
    arch = ArchParams.from_model(supernet, init_std=0.0)
    with torch.no_grad():
        for row, key in zip(arch.logits, arch.keys, strict=True):
            row[: len(logits[key])] = torch.tensor(logits[key])
    return arch


def linear(matrix):
    layer = nn.Linear(*reversed(matrix.shape), bias=False)
    layer.weight.data.copy_(matrix)
    return layer


def four_classes(examples=32):
    """Returns (N, 2) the two bits of the label as -1 and 1, and the labels (N,)."""
    labels = torch.arange(examples) % 4
    return torch.stack([labels % 2, labels // 2], 1).float() * 2 - 1, labels


# The part of each bit in the four scores. The class is where both bits agree.
SCORES = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])


class OneBest(nn.Module):
    """Of three operations, one solves the task, one gives the opposite, and one gives nothing."""

    def __init__(self):
        super().__init__()
        self.op = Choice({"none": linear(0 * SCORES), "wrong": linear(-SCORES), "right": linear(3 * SCORES)}, key="op")

    def forward(self, x):
        return self.op(x)


class Node(nn.Module):
    """Three edges into one node. "low" and "high" see one bit each, and both are needed. "idle" sees no bit."""

    def __init__(self, *, weighed=False):
        super().__init__()
        nothing = torch.zeros(4, 2)
        useful = {"low": SCORES * torch.tensor([1.0, 0.0]), "high": SCORES * torch.tensor([0.0, 1.0]), "idle": nothing}
        self.edges = nn.ModuleList(
            Choice({"none": linear(nothing), "use": linear(matrix)}, key=key, group="node", weighed=weighed)
            for key, matrix in useful.items()
        )

    def forward(self, x):
        return sum(edge(x) for edge in self.edges)
