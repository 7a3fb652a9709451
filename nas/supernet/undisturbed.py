"""Looking at a model without leaving a trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from nas.runtime.buffers import Buffers


@contextmanager
def undisturbed(model: nn.Module, *, seed: int) -> Iterator[None]:
    """The model in evaluation mode, and torch's generators seeded, as some operations draw noise even then.

    At the end its buffers and modes and the generators are as they were before. Weights and gradients are left to the
    code inside.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = Buffers(model)
    gpus = sorted({weight.device.index for weight in model.parameters() if weight.device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus):
        # Not torch.manual_seed, which also seeds generators that are not put back.
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            buffers.put_back()
