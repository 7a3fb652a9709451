"""Writes down what a module runs, in order, without running it, for `nas.methods.cuda_graphs`."""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg
from torch.nn.modules.dropout import _DropoutNd

from nas.spaces.cell import Cell
from nas.spaces.ops import Noise
from nas.supernet.choice import Choice, begins_in_place
from nas.supernet.hooked import is_watched

RANDOM = (_DropoutNd, nn.RReLU, Noise)

# What may stand between modules: functions that return one tensor, neither random nor in place.
FUNCTIONS = frozenset({
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.getitem,
    torch.add, torch.sub, torch.mul, torch.div, torch.cat, torch.stack, torch.flatten, torch.mean, torch.sum,
    torch.relu, torch.sigmoid, torch.tanh, torch.squeeze, torch.unsqueeze, F.relu, F.relu6, F.gelu, F.silu, F.sigmoid,
    F.tanh, F.softmax, F.log_softmax, F.pad, F.interpolate, F.adaptive_avg_pool2d, F.avg_pool2d, F.max_pool2d,
})  # fmt: skip
MAY_WRITE = frozenset({F.relu, F.relu6, F.silu})  # into their first argument, if their second one says so
METHODS = frozenset({
    "add", "sub", "mul", "div", "mean", "sum", "flatten", "view", "reshape", "permute", "transpose", "squeeze",
    "unsqueeze", "relu", "sigmoid", "tanh", "softmax", "log_softmax", "contiguous", "float",
})  # fmt: skip


class UntraceableError(Exception):
    """It cannot be known in advance what a module runs."""


@dataclass(frozen=True)
class Node:
    """A tensor between inputs and outputs, by its number."""

    number: int


@dataclass(frozen=True)
class Place:
    """The place of one operation: an edge of a cell, another choice, a fixed module, or a function between modules.

    number: of the place. candidates: several for a choice, of which one runs. sources: the nodes that they take.
    target:
    the node that their output becomes, or is added to in a cell. weights: whether any candidate has weights.
    """

    number: int
    candidates: Sequence[Callable[..., Any]]
    sources: tuple[Node, ...]
    target: Node
    choice: Choice | None
    weights: bool
    in_cell: bool


@dataclass(frozen=True)
class Block:
    """A cell, of which only living places run, or a single place.

    rows: for each node that it computes, the places that lead there; in a cell by source. first, last: the places of
    the
    block are numbered from first up to last.
    """

    rows: Sequence[Sequence[Place]]
    first: int
    last: int
    cell: Cell | None = None


@dataclass(frozen=True)
class Tape:
    """The trace of a module.

    inputs: the number of given nodes, which come first. nodes: the number of all nodes. result: what the module
    returns,
    with nodes in place of tensors.
    """

    inputs: int
    nodes: int
    blocks: Sequence[Block]
    result: Any

    def outputs(self) -> list[Node]:
        return nodes_in(self.result)

    def places(self) -> Iterator[Place]:
        for block in self.blocks:
            for row in block.rows:
                yield from row


def tapes(module: nn.Module) -> Iterator[tuple[nn.Module, Tape]]:
    """Returns the tapes of a module, or of its largest parts that can be traced.

    A choice that cannot be traced is left out with everything in it: its gate is part of what its candidates compute.
    """
    try:
        yield module, Writer().tape(module)
    except UntraceableError:
        if not isinstance(module, Choice):
            for child in module.children():
                yield from tapes(child)


def whole(module: nn.Module) -> bool:
    """Says whether a module is taken as one operation, without looking into its forward pass."""
    return isinstance(module, Choice | Cell) or not any(isinstance(part, Choice) for part in module.modules())


class Tracer(fx.Tracer):
    """Raises UntraceableError for what runs inside of a context such as `torch.no_grad`: a trace does not hold it."""

    def __init__(self) -> None:
        super().__init__()
        self._modes = modes()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if modes() != self._modes:
            raise UntraceableError("a part of it runs without gradients or at a precision of its own")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return whole(m)


def modes() -> tuple[Any, ...]:
    """Returns what contexts set: whether gradients are computed, and the precision."""
    precisions = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *precisions


class Writer:
    """Numbers the tensors that a module computes, and collects the operations."""

    def __init__(self) -> None:
        self._nodes = self._places = 0
        self._blocks: list[Block] = []

    def tape(self, module: nn.Module) -> Tape:
        """Returns the tape.

        Raises UntraceableError for a module that is random, that holds a choice in a choice, that decides
        by its input what to run, or that has no weights, as then too little runs.
        """
        if any(isinstance(part, RANDOM) for part in module.modules()):
            raise UntraceableError("it is random")
        if not any(True for _ in module.parameters()):
            raise UntraceableError("it has no weights")
        if isinstance(module, Cell):
            given = [self._node() for _ in range(module.inputs)]
            result = self._module(module, given)  # first, as it adds nodes
            return Tape(len(given), self._nodes, self._blocks, result)
        if whole(module):
            result = self._module(module, self._node())
            return Tape(1, self._nodes, self._blocks, result)
        refuse_watched(module)
        try:
            # Under autocast, so that a part shows that turns it off.
            with torch.autocast(next(module.parameters()).device.type):
                graph = Tracer().trace(module)
        except Exception as error:  # whatever code that expects tensors raises without them
            raise UntraceableError(str(error)) from error
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            arguments, named = map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "placeholder" and not str(node.target).startswith("*"):
                values[node] = self._node()
            elif node.op == "call_module" and len(arguments) == 1 and not named:
                values[node] = self._module(module.get_submodule(str(node.target)), arguments[0])
            elif node.op in ("call_function", "call_method"):
                values[node] = self._function(node.target, arguments, named)
            elif node.op == "output":
                values[node] = arguments[0]
            else:
                raise UntraceableError(f"{node.op} of {node.target}")
        inputs = sum(node.op == "placeholder" for node in graph.nodes)
        return Tape(inputs, self._nodes, self._blocks, result=values[node])

    def _node(self) -> Node:
        self._nodes += 1
        return Node(self._nodes - 1)

    def _place(self, run: Callable[..., Any], sources: Sequence[Node], target: Node, *, in_cell: bool = False) -> Place:
        self._places += 1
        candidates, choice = [run], None
        if isinstance(run, nn.Module):
            if begins_in_place(run):  # and its input is another one for whoever takes it too
                raise UntraceableError(f"{type(run).__name__} writes into what it is given")
            if any(isinstance(part, Choice) for part in run.modules() if part is not run):
                raise UntraceableError(f"{type(run).__name__} holds a choice")
            if isinstance(run, Choice):
                refuse_watched(run)
                candidates, choice = list(run.candidates), run
        weights = isinstance(run, nn.Module) and any(True for _ in run.parameters())
        return Place(self._places - 1, candidates, tuple(sources), target, choice, weights, in_cell)

    def _module(self, module: nn.Module, given: Any) -> Any:
        if isinstance(module, nn.Identity) and not is_watched(module):
            return given
        if isinstance(module, Cell):
            return self._cell(module, given)
        if not isinstance(given, Node):
            raise UntraceableError(f"{type(module).__name__} takes something else than a tensor")
        return self._single(module, [given])

    def _cell(self, cell: Cell, given: Any) -> list[Node]:
        refuse_watched(cell)
        if min(cell.outputs) < cell.inputs:
            raise UntraceableError("the cell returns what it is given")
        first, nodes = self._places, [*given, *(self._node() for _ in cell.edges)]
        rows = []
        for target, edges in zip(nodes[cell.inputs :], cell.edges, strict=True):
            incoming: list[nn.Module] = list(edges.children())
            pairs = zip(incoming, nodes, strict=False)
            rows.append([self._place(edge, [source], target, in_cell=True) for edge, source in pairs])
        self._blocks.append(Block(rows, first, self._places, cell))
        return [nodes[output] for output in cell.outputs]

    def _single(self, run: Callable[..., Any], sources: Sequence[Node]) -> Node:
        target = self._node()
        place = self._place(run, sources, target)
        self._blocks.append(Block([[place]], place.number, self._places))
        return target

    def _function(self, target: Any, arguments: Any, named: Any) -> Any:
        if target is operator.getitem and isinstance(arguments[0], list | tuple):
            return arguments[0][arguments[1]]
        if target in METHODS:
            function = method(str(target))
        elif target in FUNCTIONS:
            function = target
        else:
            raise UntraceableError(f"{target} is not known to be a function that returns one tensor")
        if named.get("inplace") or (target in MAY_WRITE and len(arguments) > 1 and arguments[1]):
            raise UntraceableError(f"{target} writes into what it is given")
        sources = list(dict.fromkeys(nodes_in((arguments, named))))
        if not sources:
            raise UntraceableError(f"{target} of no tensor")

        def run(*tensors: torch.Tensor) -> Any:
            given = dict(zip(sources, tensors, strict=True))
            filled, filled_named = map_aggregate(
                (arguments, named), lambda value: given[value] if isinstance(value, Node) else value
            )
            return function(*filled, **filled_named)

        return self._single(run, sources)


def refuse_watched(module: nn.Module) -> None:
    if is_watched(module):
        raise UntraceableError(f"a {type(module).__name__} has hooks, and only its parts would be replayed")


def method(name: str) -> Callable[..., Any]:
    return lambda tensor, *arguments, **named: getattr(tensor, name)(*arguments, **named)


def nodes_in(value: Any) -> list[Node]:
    """Returns all nodes in nested lists, tuples and dicts."""
    found: list[Node] = []
    map_aggregate(value, lambda one: found.append(one) if isinstance(one, Node) else None)
    return found
