"""Scores a network, and counts its parameters and multiply-accumulates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.inputs import each
from nas.data.loader import Loader
from nas.data.spec import DataSpec
from nas.errors import described
from nas.runtime.modes import evaluating
from nas.runtime.runtime import device_of
from nas.spaces.darts import auxiliary_heads
from nas.supernet.mac_counter import MacCounter
from nas.training.metrics import Optional, single_sum
from nas.training.task import Task
from nas.training.task_state import buffers_kept
from nas.training.weighing import MeanLoss


@dataclass(frozen=True)
class Score:
    """The task's metric and its loss over `examples` examples, and the task's other `measures`.

    Both are means. In the loss, examples have the weights that the task gives them.
    """

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
    look: Callable[[Tensor, Tensor], None] | None = None,
    scored: Callable[[Score], None] = lambda score: None,
) -> Score:
    """Runs the network in eval mode on every example of the loader, once. Waits for the device only at the end. The
    modes and buffers of the network and the state of the task stay as they are, e.g. running statistics of its loss.

    look: is called with the outputs and targets of every batch, if given.
    scored: is called with metric and loss before the other measures are put together, which may take memory.
    """
    metric: Tensor | float = 0.0
    loss = MeanLoss(task)
    examples = 0
    measures = Optional(lambda: task.measures(spec))
    with buffers_kept(task), evaluating(network):
        for inputs, targets in loader.epoch(0):
            outputs = network(*each(inputs))
            of_each = task.measure(outputs, targets)
            measures.add(outputs, targets, of_each)
            if look is not None:
                look(outputs, targets)
            metric += single_sum(of_each)
            loss.add(task.loss(outputs, targets), targets)
            examples += len(targets)
    found = Score(float(metric) / examples, loss.result(), examples)
    scored(found)
    return replace(found, measures=measures.results())


def counted_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    """Yields the trainable parameters, without those of an auxiliary head, which inference does not use."""
    left_out = {one for head in auxiliary_heads(network).values() for one in head.parameters()}
    for parameter in network.parameters():
        if parameter.requires_grad and parameter not in left_out:
            yield parameter


def count_parameters(network: nn.Module) -> int:
    """Returns how many numbers the parameters of `counted_parameters` have."""
    return sum(parameter.numel() for parameter in counted_parameters(network))


@torch.no_grad()
def count_macs(network: nn.Module, spec: DataSpec) -> int:
    """Returns the multiply-accumulates of one example's forward pass in eval mode.

    Counts convolutions and matrix products as torch's own FLOP counter does (two operations each).
    """
    with MacCounter() as counter, evaluating(network):
        network(*each(spec.zeros(device=device_of(network))))
    return counter.total


def macs_or_reason(network: nn.Module, spec: DataSpec) -> dict[str, Any]:
    """Returns ``macs``, or None and a ``macs_reason`` if counting fails: this must not cost a result."""
    try:
        return {"macs": count_macs(network, spec)}
    except Exception as error:  # a user's model may raise any error for one example of zeros
        return {"macs": None, "macs_reason": described(error)}
