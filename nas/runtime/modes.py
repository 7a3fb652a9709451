"""Sets evaluation mode for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode. At the end restores the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        put_modes(modes)


def put_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """Sets modes of modules, parents first. Training mode is set by a module's own `train`, which may do more than set
    modes: LeViT of timm forgets the biases that it keeps in evaluation mode, and LoRA takes merged weights apart."""
    for module, mode in modes:
        if mode and not module.training:
            module.train(True)
    for module, mode in modes:  # of parts that are frozen in another mode than their parents
        module.training = mode
