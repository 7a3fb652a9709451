"""Scores and sizes of a network."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.inputs import each
from nas.data.loader import Loader
from nas.data.spec import DataSpec
from nas.errors import described
from nas.supernet.mac_counter import MacCounter
from nas.training.metrics import Optional
from nas.training.task import Task
from nas.training.weighing import MeanLoss


@dataclass(frozen=True)
class Score:
    """The task's metric and its loss, means over `examples` examples, in the loss as the task weighs them; measures:
    what else the task measures."""

    metric: float
    loss: float
    examples: int
    measures: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def score(
    network: nn.Module,
    loader: Loader,
    task: Task,
    spec: DataSpec,
    *,
    scored: Callable[[Score], None] = lambda score: None,
) -> Score:
    """The network in eval mode on every example of the loader, once. The device is waited for at the end only.

    scored: called with metric and loss before what else was measured is put together, which may take memory.
    """
    network.eval()
    metric: Tensor | float = 0.0
    loss = MeanLoss(task)
    examples = 0
    measures = Optional(lambda: task.measures(spec))
    for inputs, targets in loader.epoch(0):
        outputs = network(*each(inputs))
        of_each = task.measure(outputs, targets)
        measures.add(outputs, targets, of_each)
        metric += of_each.sum()
        loss.add(task.loss(outputs, targets), targets)
        examples += len(targets)
    found = Score(float(metric) / examples, loss.result(), examples)
    scored(found)
    return replace(found, measures=measures.results())


def counted_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    """The trainable ones, without those of an auxiliary head, which no inference uses."""
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and not name.startswith("auxiliary."):
            yield parameter


def count_parameters(network: nn.Module) -> int:
    """How many numbers `counted_parameters` has."""
    return sum(parameter.numel() for parameter in counted_parameters(network))


@torch.no_grad()
def count_macs(network: nn.Module, spec: DataSpec) -> int:
    """Multiply-accumulates of one example's forward pass in eval mode, convolutions and matrix products, as torch's own
    FLOP counter sees them (two operations each)."""
    network.eval()
    tensors = (*network.parameters(), *network.buffers())
    device = tensors[0].device if tensors else torch.device("cpu")
    with MacCounter() as counter:
        network(*each(spec.zeros(device=device)))
    return counter.total


def macs_or_reason(network: nn.Module, spec: DataSpec) -> dict[str, Any]:
    """``macs``, or None with a ``macs_reason`` where they cannot be counted: no result is worth losing for them."""
    try:
        return {"macs": count_macs(network, spec)}
    except Exception as error:  # whatever a user's model raises at a batch of one example of zeros
        return {"macs": None, "macs_reason": described(error)}
