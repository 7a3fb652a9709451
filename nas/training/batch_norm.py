"""Controls which statistics the batch norms of a model normalise with.

By default a batch norm uses the statistics of the batch in training mode, and its running statistics in evaluation
mode.
"""

import functools
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.runtime import distributed


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def frozen_norms(model: nn.Module) -> list[_BatchNorm]:
    """Returns the norms in evaluation mode of a model in training mode, e.g. those of a pretrained part."""
    return [norm for norm in batch_norms(model) if model.training and not norm.training]


@contextmanager
def batch_statistics(model: nn.Module, *, but: Collection[_BatchNorm] = ()) -> Iterator[None]:
    """Inside, every batch norm uses the statistics of the batch. It neither reads nor updates its running statistics.

    but: norms that are left alone.
    """
    before = [(norm, norm.training, norm.track_running_stats) for norm in batch_norms(model) if norm not in but]
    for norm, _, _ in before:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, training, tracks in before:
            norm.training, norm.track_running_stats = training, tracks


def recalibrate(model: nn.Module, run: Callable[[], None], *, but: Collection[_BatchNorm] = ()) -> None:
    """Replaces the running statistics by the plain average over the batches that `run` passes through the model.

    The statistics of a norm that no batch reaches are reset. `run` is not called for a model without batch norms. but:
    norms that are left alone.
    """
    before = [(norm, norm.training, norm.momentum) for norm in batch_norms(model) if norm not in but]
    for norm, _, _ in before:
        norm.reset_running_stats()
        norm.training, norm.momentum = True, None  # None: all batches have the same weight in the average
    try:
        if before:
            run()
    finally:
        for norm, training, momentum in before:
            norm.training, norm.momentum = training, momentum


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Inside, batch norms on a GPU use the statistics of the whole batch that several processes share.

    On a CPU torch cannot do this: each process uses the statistics of its own share, and the first process warns once.
    Inside, the norms are torch's SyncBatchNorm with the same weights and statistics. Afterwards they are the old norms
    again, so that no export sees a SyncBatchNorm.
    """
    norms = batch_norms(model)
    if distributed.world() == 1 or not norms:
        yield
    elif on_cpu(norms):
        say_statistics_differ()
        yield
    else:
        places = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, _BatchNorm)
        ]
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        try:
            yield
        finally:
            for parent, name, norm in places:
                norm.train(parent.get_submodule(name).training)
                parent.add_module(name, norm)


def on_cpu(norms: list[_BatchNorm]) -> bool:
    tensors = [tensor for norm in norms for tensor in (*norm.parameters(), *norm.buffers())]
    return any(tensor.device.type == "cpu" for tensor in tensors)


@functools.cache
def say_statistics_differ() -> None:
    """Prints the warning once per process, for any number of models."""
    if distributed.first():
        print(
            f"warning: on CPUs each of the {distributed.world()} processes has its own batch norms: they use the "
            "statistics of its share of a batch, and those of the first process are kept",
            file=sys.stderr,
        )
