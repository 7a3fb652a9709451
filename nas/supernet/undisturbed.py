"""Runs a model without changing its buffers, its modes or torch's random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from nas.runtime.modes import evaluating


@contextmanager
def undisturbed(model: nn.Module, *, seed: int) -> Iterator[None]:
    """Sets evaluation mode and seeds torch's generators, because some operations draw noise in evaluation mode too.

    At the end restores the buffers, the modes and the generators. The code inside is responsible for weights and
    gradients.
    """
    gpus = sorted({weight.device.index for weight in model.parameters() if weight.device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus), evaluating(model):
        # Not torch.manual_seed, which also seeds generators that fork_rng does not restore.
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
