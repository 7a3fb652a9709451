"""Which statistics the batch norms of a model normalise with.

Left alone, they take those of the batch in training mode and their running ones in evaluation mode.
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
    """Those that are kept in evaluation mode while the model is in training mode, as in a pretrained part."""
    return [norm for norm in batch_norms(model) if model.training and not norm.training]


@contextmanager
def batch_statistics(model: nn.Module, *, but: Collection[_BatchNorm] = ()) -> Iterator[None]:
    """Inside, every batch norm takes the statistics of the batch itself; its running ones are not read, nor moved.

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
    """Replace the running statistics by the plain average over the batches that `run` passes through the model.

    Those of a norm that no batch reaches are reset. Nothing is run for a model without batch norms. but: norms that are
    left alone.
    """
    before = [(norm, norm.training, norm.momentum) for norm in batch_norms(model) if norm not in but]
    for norm, _, _ in before:
        norm.reset_running_stats()
        norm.training, norm.momentum = True, None  # None: an average that weighs all batches equally
    try:
        if before:
            run()
    finally:
        for norm, training, momentum in before:
            norm.training, norm.momentum = training, momentum


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Inside, batch norms on a GPU take the statistics of a batch from all processes that share it.

    On a CPU, for which torch has no such thing, each process goes on with those of its own share, and the first says
    so once. Inside, the norms are torch's SyncBatchNorm over the same weights and statistics; afterwards they are what
    they were, so that no export meets it.
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
    """Once in a process, however many models it trains."""
    if distributed.first():
        print(
            f"warning: on CPUs each of the {distributed.world()} processes has batch norms of its own: they take the "
            "statistics of its share of a batch, and those of the first process are kept",
            file=sys.stderr,
        )
