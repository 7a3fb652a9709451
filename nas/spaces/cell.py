"""Cells: directed acyclic graphs whose edges are choices between operations."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nas.spaces.dead_edges import living, only_drawn
from nas.spaces.in_place_sum import owns_output, summed
from nas.spaces.shared_prefix import shared_starts
from nas.supernet.choice import Choice


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

    In training, edges that have no part in the outputs do not run (see `nas.spaces.dead_edges`), and operations share
    what they begin with (see `nas.spaces.shared_prefix`).
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
        edges: list[list[nn.Module]] = [list(cast(nn.ModuleList, incoming)) for incoming in self.edges]
        operations = [[only_drawn(edge) for edge in incoming] for incoming in edges]
        if self.training:
            plan = living(operations, inputs=self.inputs, outputs=self.outputs)
        else:
            plan = [(list(range(len(incoming))), True) for incoming in edges]
        starts = shared_starts(operations, plan) if self.training else {}
        nodes: dict[int, Any] = dict(enumerate(states))
        started: dict[Any, Tensor] = {}
        for row, (incoming, (sources, needed)) in enumerate(zip(edges, plan, strict=True)):
            if sources and needed:
                terms, owned = [], []
                for source in sources:
                    edge, operation, start = incoming[source], operations[row][source], starts.get((row, source))
                    if start is None:
                        output = edge(nodes[source])
                    else:
                        if (source, start.kind) not in started:
                            started[source, start.kind] = start.module(nodes[source])
                        output = cast(Choice, edge).instead(start.rest, started[source, start.kind])
                    terms.append(self._dropped(edge, output))
                    owned.append(owns_output(edge, operation, start))
                if self.training and None not in operations[row]:
                    nodes[self.inputs + row] = summed(terms, owned)
                else:
                    nodes[self.inputs + row] = functools.reduce(operator.add, terms)  # sum() begins with 0 + the first
            elif needed:
                none = operations[row][0]
                assert none is not None  # what enters from the cell's own input is `none`, or the node were not zeros
                nodes[self.inputs + row] = none(nodes[0])
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
