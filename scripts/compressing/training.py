"""Trains plain networks by this project's retraining: the one that is made smaller, and what was made of it."""

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nas
from compressing.resnet import ResNet
from nas.api.found import Found
from nas.data.transforms import Augment
from nas.runtime.runtime import Runtime
from nas.spaces.custom import Custom
from nas.storage.checkpointing import Checkpoints
from nas.supernet.choice import Choice
from nas.supernet.genotype import Genotype
from nas.training.hooks import Hook
from nas.training.schedule import Cosine, OneCycle
from nas.training.trained import Trained

BATCH = 128
SGD = functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4)
AUGMENT = Augment(crop_padding=4, flip=True)
DECIDED = Genotype("custom", {"head": "keep"})


class CountUpdates(Hook):
    """Logs how many updates the weights have had."""

    def after_epoch(self, state: Any) -> None:
        state.metrics["updates"] = state.epoch * state.steps


# What every training and search of the study has in common.
ALIKE: dict[str, Any] = {
    "batch_size": BATCH,
    "augment": AUGMENT,
    "device": Runtime(device="cpu", threads=1),
    "resume": True,
    "hooks": [CountUpdates()],
    "saving": functools.partial(Checkpoints, every_minutes=10, share=None),
    "progress": False,
}


def decided(network: nn.Module) -> nn.Module:
    """The network with a choice that `DECIDED` makes, as `nas.retrain` trains only networks that have one."""
    network.head = Choice({"keep": network.head, "not taken": copy.deepcopy(network.head)}, key="head")
    return network


def original(num_classes: int, **sizes: Any) -> nn.Module:
    return decided(ResNet(num_classes=num_classes, **sizes))


def train_original(data: Path, directory: Path, *, epochs: int, **sizes: Any) -> Trained:
    """Trains the network from nothing, or goes on with the run in the directory. sizes: of the `ResNet`."""
    return nas.retrain(
        Custom(factory=original, arguments=sizes),
        DECIDED,
        data,
        test=data,
        epochs=epochs,
        grad_clip=0.0,
        optim=functools.partial(SGD, lr=0.2),
        lr=functools.partial(OneCycle, warmup=0.2),
        seed=0,
        directory=directory,
        **ALIKE,
    )


def load_original(directory: Path) -> nn.Module:
    """The network that `train_original` left in this directory."""
    return nas.load(directory, allow=[original])


def fine_tune(
    model: nn.Module, found: Found, data: Path, directory: Path, *, epochs: int, lr: float, seed: int, pilot: bool
) -> Trained:
    """Trains what was found in the model, from the weights that it has there, with batch norms recalibrated.

    pilot: a tenth of the training images is held out and scored in place of the test split.
    """
    return nas.retrain(
        model,
        found,
        data,
        start="supernet",
        test=None if pilot else data,
        validation=0.1 if pilot else None,
        epochs=epochs,
        grad_clip=0.0,
        optim=functools.partial(SGD, lr=lr),
        lr=Cosine,
        seed=seed,
        directory=directory,
        **ALIKE,
    )
