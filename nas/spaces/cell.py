"""Cells: directed acyclic graphs whose edges are choices between operations."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nas.spaces.planned_cell import run_planned


class DropPath(nn.Module):
    """Zeroes whole samples of an edge's output with probability `rate` and rescales the rest, in training only.

    Source: Larsson et al. 2017, per edge as in NASNet and DARTS. The rate is set by `set_drop_path`. It is a tensor, as
    a network would be compiled anew for every other number.
    """

    rate: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rate", torch.zeros(()), persistent=False)
        self.active = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.active:
            return x
        keep = (1 - self.rate).expand(x.shape[0], 1, 1, 1)
        return x * (torch.bernoulli(keep) / keep).to(x.dtype)


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Set the rate of every DropPath in the model."""
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate.fill_(rate)
            module.active = rate > 0


class Cell(nn.Module):
    """A DAG over feature maps: each new node is the sum of one edge from every node before it.

    inputs: how many nodes the cell is given; nodes: how many it computes. outputs: the numbers of those it returns.
    edge: (source, node) -> module of that edge.

    In training the sums are formed faster, with the same values: see `nas.spaces.planned_cell`.
    """

    def __init__(
        self, *, inputs: int, nodes: int, edge: Callable[[int, int], nn.Module], outputs: Sequence[int]
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.outputs = tuple(outputs)
        self.drop_path = DropPath()
        self.edges = nn.ModuleList(
            nn.ModuleList(edge(source, node) for source in range(node)) for node in range(inputs, inputs + nodes)
        )

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        """states: the input nodes, (N, C, H, W) each. Returns the nodes of `outputs`."""
        rows: list[list[nn.Module]] = [list(cast(nn.ModuleList, incoming)) for incoming in self.edges]
        if self.training:  # the same sums, without what has no part in them
            return run_planned(rows, states, outputs=self.outputs, dropped=self._dropped)
        nodes = list(states)
        for incoming in rows:
            terms = (self._dropped(edge, edge(node)) for edge, node in zip(incoming, nodes, strict=True))
            nodes.append(functools.reduce(operator.add, terms))  # sum() begins with 0 + the first
        return [nodes[node] for node in self.outputs]

    def _dropped(self, edge: nn.Module, output: Any) -> Any:
        # As in DARTS, skips are never dropped; a dropped edge is the number 0.
        if not self.drop_path.active or isinstance(edge, nn.Identity) or not isinstance(output, Tensor):
            return output
        return self.drop_path(output)


class ClassifierHead(nn.Module):
    """Global average pooling and a linear layer: (N, channels, H, W) -> (N, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
