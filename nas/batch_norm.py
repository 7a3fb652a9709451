"""Which statistics the batch norms of a model in evaluation mode normalise with.

Left alone, they take their running statistics.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, every batch norm takes the statistics of the batch itself; its running ones are not read, nor moved."""
    before = [(norm, norm.training, norm.track_running_stats) for norm in batch_norms(model)]
    for norm, _, _ in before:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, training, tracks in before:
            norm.training, norm.track_running_stats = training, tracks


def recalibrate(model: nn.Module, run: Callable[[], None]) -> None:
    """Replace the running statistics by the plain average over the batches that `run` passes through the model.

    Those of a norm that no batch reaches are reset. Nothing is run for a model without batch norms.
    """
    before = [(norm, norm.training, norm.momentum) for norm in batch_norms(model)]
    for norm, _, _ in before:
        norm.reset_running_stats()
        norm.training, norm.momentum = True, None  # None: an average that weighs all batches equally
    try:
        if before:
            run()
    finally:
        for norm, training, momentum in before:
            norm.training, norm.momentum = training, momentum
