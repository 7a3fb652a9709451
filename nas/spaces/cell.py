"""Cells: directed acyclic graphs whose edges are choices between operations."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas import processes
from nas.choice import Choice
from nas.spaces.living import living, only_drawn
from nas.spaces.shared_relu import sharing


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
        # Drawn for the whole batch, of which other processes may have a share, so that each has numbers of its own.
        share = processes.share()
        keep = (1 - self.rate).expand(share.of * x.shape[0], 1, 1, 1)
        return x * share.rows(torch.bernoulli(keep) / keep).to(x.dtype)


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

    In training, edges that have no part in the outputs do not run (see `nas.spaces.living`), and operations share a
    ReLU that they begin with (see `nas.spaces.shared_relu`).
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
        rests = sharing(operations, plan) if self.training else {}
        nodes: dict[int, Any] = dict(enumerate(states))
        rectified: dict[int, Tensor] = {}
        for row, (incoming, (sources, needed)) in enumerate(zip(edges, plan, strict=True)):
            if sources and needed:
                terms = []
                for source in sources:
                    edge, rest = incoming[source], rests.get((row, source))
                    if rest is not None and source not in rectified:
                        rectified[source] = F.relu(nodes[source])
                    terms.append(
                        self._run(edge, nodes[source]) if rest is None else self._run(edge, rectified[source], rest)
                    )
                nodes[self.inputs + row] = functools.reduce(operator.add, terms)  # sum() begins with 0 + the first
            elif needed:
                none = operations[row][0]
                assert none is not None  # what enters from the cell's own input is `none`, or the node were not zeros
                nodes[self.inputs + row] = none(nodes[0])
        return [nodes[node] for node in self.outputs]

    def _run(self, edge: nn.Module, state: Tensor, rest: Callable[[Tensor], Tensor] | None = None) -> Any:
        """rest: what is left to be done of the edge's operation, see `nas.spaces.shared_relu`."""
        output = edge(state) if rest is None else cast(Choice, edge).instead(rest, state)
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
