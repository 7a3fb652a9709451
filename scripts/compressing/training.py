"""Trains a plain network by this project's retraining, with the recipe of the study."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import nas
from nas.data.transforms import Augment
from nas.runtime.runtime import Runtime
from nas.storage.checkpointing import Checkpoints
from nas.supernet.choice import Choice
from nas.supernet.genotype import Genotype
from nas.training.schedule import OneCycle
from nas.training.trained import Trained

from compressing.resnet import ResNet

BATCH = 128
SGD = functools.partial(torch.optim.SGD, lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
AUGMENT = Augment(crop_padding=4, flip=True)
SAVING = functools.partial(Checkpoints, every_minutes=10, share=None)


def without_alternative(network: nn.Module) -> nn.Module:
    """The network with a choice that is made already: `nas.retrain` trains only networks that have one."""
    network.head = Choice({"keep": network.head, "not taken": copy.deepcopy(network.head)}, key="head")
    return network


def trained(
    build: Callable[..., nn.Module] | nn.Module,
    data: Path,
    directory: Path,
    *,
    epochs: int,
    seed: int,
    optim: Callable[..., torch.optim.Optimizer] = SGD,
    lr: Callable[..., object] = functools.partial(OneCycle, warmup=0.2),
) -> Trained:
    """The network after training. The test split of `data` is scored once, at the end.

    build: of `without_alternative`. directory: of the run. A run that was stopped goes on.
    """
    return nas.retrain(
        build,
        Genotype("custom", {"head": "keep"}),
        data,
        test=data,
        epochs=epochs,
        batch_size=BATCH,
        grad_clip=0.0,
        optim=optim,
        lr=lr,
        augment=AUGMENT,
        seed=seed,
        device=Runtime(device="cpu", threads=1),
        directory=directory,
        resume=True,
        saving=SAVING,
        progress=False,
    )


def original(num_classes: int) -> nn.Module:
    return without_alternative(ResNet(num_classes=num_classes))
