"""Sets evaluation mode for a while, and leaves a model as it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from nas.runtime.buffers import Buffers


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode. At the end restores the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        put_modes(modes)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """As `evaluation_mode`. Also restores the buffers, which some models change in evaluation mode."""
    buffers = Buffers(model)
    try:
        with evaluation_mode(model):
            yield
    finally:
        buffers.put_back()


def put_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """Sets modes of modules, parents first. Training mode is set by a module's own `train`, which may do more than set
    modes: LeViT of timm forgets the biases that it keeps in evaluation mode, and LoRA takes merged weights apart."""
    for module, mode in modes:
        if mode and not module.training:
            module.train(True)
    for module, mode in modes:  # of parts that are frozen in another mode than their parents
        module.training = mode
