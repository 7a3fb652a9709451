"""The floor of a step: the same step of the plain network that was drawn."""

import functools
import operator

import torch
from torch import nn

from nas.data.inputs import each
from nas.spaces.cell import Cell
from nas.spaces.ops import Zero
from nas.supernet.freezing import freeze


class PlainCell(nn.Module):
    """The edges of a frozen cell that are not dead, and nothing else.

    plan: node -> its (source, module) pairs. zeros: node -> the module that gives 0, for dead nodes that are outputs.
    """

    def __init__(self, cell):
        super().__init__()
        count = cell.inputs + len(cell.edges)
        into = {
            node: [(source, edge) for source, edge in enumerate(incoming) if not isinstance(edge, Zero)]
            for node, incoming in enumerate(cell.edges, cell.inputs)
        }
        alive = set(range(cell.inputs))
        for node, edges in into.items():
            into[node] = [(source, edge) for source, edge in edges if source in alive]
            if into[node]:
                alive.add(node)
        needed = cell.outputs
        wanted = set(needed)
        for node in reversed(range(cell.inputs, count)):
            if node in wanted:
                wanted |= {source for source, _ in into[node]}
        self.count, self.needed = count, needed
        self.modules_of = nn.ModuleList(edge for node in into if node in wanted for _, edge in into[node])
        self.plan = {node: edges for node, edges in into.items() if node in wanted and edges}
        # The edge from the cell's first input is `none` at these nodes: otherwise they would not be dead.
        self.zeros = {node: cell.edges[node - cell.inputs][0] for node in needed if node not in alive}
        self.to_inputs = False  # whether the backward pass ends at the inputs

    def forward(self, states):
        nodes = list(states) + [None] * (self.count - len(states))
        if self.to_inputs:
            nodes = [x if x is None or x.requires_grad else x.detach().requires_grad_() for x in nodes]
        for node, edges in self.plan.items():
            nodes[node] = functools.reduce(operator.add, [edge(nodes[source]) for source, edge in edges])
        for node, none in self.zeros.items():
            nodes[node] = none(nodes[0])
        return [nodes[node] for node in self.needed]


def plain_network(supernet, chosen):
    """Returns a supernet with the chosen operations only. Changes the supernet, so give it a copy."""
    network = freeze(supernet, chosen)
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, Cell):
                setattr(module, name, PlainCell(child))
    return network


class Floor:
    """The two steps of one plain network."""

    def __init__(self, network, task, settings, precision):
        self.network, self.task, self.precision = network, task, precision
        self.cells = [module for module in network.modules() if isinstance(module, PlainCell)]
        self.weights = list(network.parameters())
        self.optim = torch.optim.SGD(self.weights, **settings, fused=True)
        # All weights have momentum, as after many steps.
        for weight in self.weights:
            self.optim.state[weight]["momentum_buffer"] = torch.zeros_like(weight)

    def loss(self, batch):
        with self.precision.autocast():
            return self.task.loss(self.network(*each(batch[0])), batch[1])

    def weight_step(self, batch):
        self.optim.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()
        self.optim.step()
        return loss.detach()

    def prepare_arch(self):
        self.optim.zero_grad(set_to_none=True)
        for weight in self.weights:
            weight.requires_grad_(False)
        for cell in self.cells:
            cell.to_inputs = True

    def arch_step(self, batch):
        loss = self.loss(batch)
        if loss.requires_grad:  # false if all choices are dead
            loss.backward()
        return loss.detach()
