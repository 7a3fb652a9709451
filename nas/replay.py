"""Supernets by replay: what a step launches on a GPU is recorded once, as CUDA graphs, and replayed from then on.

A step of a small network is bound by launching its kernels, not by running them, and a supernet cannot be recorded as a
whole, for every step runs another part of it. So each operation is recorded alone, forward and backward, between
tensors that stay where they are. A pass replays those that are drawn one after the other, without autograd, to which
the whole supernet is a single function.

What it asks of a model: its forward pass can be traced (see `nas.tape`; else as much of it as can), modules compute the
same whenever they are called, from their input, weights and buffers, and their hooks need not run. What it costs: the
candidates of a choice share a piece of memory, so that each choice has for good what the largest of them takes. A
candidate's first step takes some ten times as long.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.fx.node import map_aggregate

from nas.choice import Choice
from nas.errors import ConfigError
from nas.hard_gate import HardGate
from nas.spaces.cell import Cell
from nas.spaces.living import living
from nas.tape import Block, Node, Place, Tape, tapes

Replay = Callable[[], None]


class Recorder(Protocol):
    """What records work and replays it: see `nas.cuda_graphs`."""

    device: torch.device

    def pool(self) -> Any:
        """A piece of memory for work of which only one is under way at a time."""
        ...

    def rehearsing(self) -> AbstractContextManager[Any]:
        """The context in which work runs once before it is recorded."""
        ...

    def record(self, work: Replay, pool: Any) -> Replay:
        """What does again what `work` does, in the same places. Raises RuntimeError if it cannot be recorded."""
        ...


def replay(supernet: nn.Module, recorder: Recorder) -> None:
    """Let training steps of a supernet that draw one operation a choice be replayed, in place. Its copies are not."""
    token = next(module for module in supernet.modules() if isinstance(module, Choice))
    learning = next((weight for weight in supernet.parameters() if weight.requires_grad), None)
    for module, tape in list(tapes(supernet)):
        # What Module.compile sets: called in place of the module, and left out of its copies.
        module._compiled_call_impl = Replayed(module, tape, recorder, token=token, learning=learning)


class Slot:
    """Where a node's value and its gradient are, once they are made."""

    value: Tensor
    gradient: Tensor

    def __init__(self) -> None:
        self.made = False

    def make(self, like: Tensor, dtype: torch.dtype) -> None:
        self.value, self.gradient = (torch.empty_like(like, dtype=dtype) for _ in range(2))
        self.made = True


@dataclass(frozen=True)
class Recorded:
    """An operation's work, to be replayed. sources, target: numbers of nodes."""

    work: "Work"
    forward: Replay
    backward: Replay
    sources: tuple[int, ...]
    target: int


@dataclass
class Level:
    """What is recorded for weight steps (learns), or for architecture steps, whose gates get a gradient (hard).

    needs: of each node, whether it gets one. recorded: by place and candidate.
    """

    learns: bool
    hard: bool
    needs: Sequence[bool]
    recorded: dict[tuple[int, int], Recorded] = field(default_factory=dict)


@dataclass
class Kind:
    """What is recorded for inputs of one kind: shapes, layouts, types, precision.

    of_gates: the gradient of the gates of all choices. pools: by place.
    """

    slots: Sequence[Slot]
    of_gates: Tensor | None = None
    pools: dict[int, Any] = field(default_factory=dict)
    levels: dict[tuple[bool, bool], Level] = field(default_factory=dict)


class Replayed:
    """Calls a module: by replay in training steps of drawn candidates, else as it is.

    token: a choice of the supernet, which has another gate in every pass: a module that runs a second time in a pass is
    not replayed again, as its slots hold the first. learning: a weight of the supernet, which requires a gradient in
    weight steps only.
    """

    def __init__(
        self, module: nn.Module, tape: Tape, recorder: Recorder, *, token: Choice, learning: nn.Parameter | None
    ) -> None:
        self._module, self._tape, self._recorder = module, tape, recorder
        self._token, self._learning = token, learning
        self._choice_at = [place.choice for place in tape.places()]  # by their numbers
        self._choices = [choice for choice in self._choice_at if choice is not None]
        self._cells = [block.cell for block in tape.blocks if block.cell is not None]
        self._outputs = tape.outputs()
        self._pass: Any = None
        self._told = False
        self._kinds: dict[Any, Kind] = {}
        # What a weight step's outputs require a gradient through: the weights themselves get theirs past autograd.
        self._anchor = torch.zeros((), device=recorder.device, requires_grad=True)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        states = inputs[0] if isinstance(self._module, Cell) and len(inputs) == 1 else inputs
        if not named and self._replays(states):
            kind = self._kind(states)
            drawn = [0 if choice is None else drawn_by(choice) for choice in self._choice_at]
            running, empty = self._selected(drawn)
            if all(kind.slots[node].made for node in empty):  # or nothing has told yet what zeros are asked for
                self._pass = self._token.gate
                return self._replay(states, kind, [(place, drawn[place.number]) for place in running], empty)
        return self._module._call_impl(*inputs, **named)

    def _replays(self, states: Sequence[Any]) -> bool:
        if not self._module.training or not torch.is_grad_enabled() or len(states) != self._tape.inputs:
            return False
        if self._token.gate is None or self._token.gate is self._pass:
            return False
        if not all(isinstance(state, Tensor) and state.device == self._recorder.device for state in states):
            return False
        if any(cell.drop_path.active for cell in self._cells):
            return False
        gates = [choice.gate for choice in self._choices]
        return all(g is not None and g.drawn is not None and g.others is None and g.share is None for g in gates)

    def _kind(self, states: Sequence[Tensor]) -> Kind:
        device = self._recorder.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        of = precision, *((state.shape, state.stride(), state.dtype, state.requires_grad) for state in states)
        if of not in self._kinds:
            self._kinds[of] = Kind([Slot() for _ in range(self._tape.nodes)])
            for slot, state in zip(self._kinds[of].slots, states, strict=False):
                slot.make(state, state.dtype)
        return self._kinds[of]

    def _selected(self, drawn: Sequence[int]) -> tuple[list[Place], list[int]]:
        """The places that run, in order, and the nodes that are 0 because nothing leads there."""
        running: list[Place] = []
        empty: list[int] = []
        plans: dict[Any, list[tuple[list[int], bool]]] = {}
        for block in self._tape.blocks:
            if block.cell is None:
                running += block.rows[0]
                continue
            what = block.shape, *drawn[block.first : block.last]
            if what not in plans:
                plans[what] = plan(block, block.cell)
            for row, (sources, needed) in zip(block.rows, plans[what], strict=True):
                if needed:
                    running += [row[source] for source in sources]
                    if not sources:
                        empty.append(row[0].target.number)
        return running, empty

    def _replay(
        self, states: Sequence[Tensor], kind: Kind, selected: Sequence[tuple[Place, int]], empty: Sequence[int]
    ) -> Any:
        gates = [choice.gate.hard for choice in self._choices if choice.gate is not None]
        all_values = next((gate.all_values for gate in gates if gate is not None), None)
        learns = self._learning is not None and self._learning.requires_grad
        level_of = learns, all_values is not None
        expected = None if kind.levels else self._expected(states)
        if level_of not in kind.levels:
            kind.levels[level_of] = Level(*level_of, self._needs(*level_of, [state.requires_grad for state in states]))
        if all_values is not None and kind.of_gates is None:
            kind.of_gates = torch.zeros_like(all_values)
        level = kind.levels[level_of]
        recorded = []
        for place, index in selected:
            if (place.number, index) not in level.recorded:
                level.recorded[place.number, index] = self._record(place, index, kind, level)
            recorded.append(level.recorded[place.number, index])
        run = Run(self._tape, kind, recorded, empty, of_gates=None if all_values is None else kind.of_gates)
        values: tuple[Tensor, ...] = _Replay.apply(run, self._anchor if learns else None, all_values, *states)
        if expected is not None:
            self._check(values, expected)
        by_node = dict(zip(self._outputs, values, strict=True))
        result = map_aggregate(self._tape.result, lambda one: by_node[one] if isinstance(one, Node) else one)
        return list(result) if isinstance(result, list) else result

    def _needs(self, learns: bool, hard: bool, of_states: Sequence[bool]) -> list[bool]:
        """Of each node, whether something that is to get a gradient leads there."""
        needs = [*of_states, *[False] * (self._tape.nodes - len(of_states))]
        for place in self._tape.places():
            own = (learns and place.weights) or (hard and place.choice is not None)
            needs[place.target.number] |= own or any(needs[source.number] for source in place.sources)
        return needs

    def _record(self, place: Place, index: int, kind: Kind, level: Level) -> Recorded:
        candidate = place.candidates[index]
        hard = place.choice.gate.hard if place.choice is not None and place.choice.gate is not None else None
        module = candidate if isinstance(candidate, nn.Module) else nn.Identity()
        work = Work(
            candidate,
            [kind.slots[source.number] for source in place.sources],
            kind.slots[place.target.number],
            passes_on=[level.needs[source.number] for source in place.sources],
            gate=None if hard is None or kind.of_gates is None else kind.of_gates[hard.index],
            weights=[weight for weight in module.parameters() if weight.requires_grad] if level.learns else [],
            adds=place.in_cell,
            widens=place.in_cell or place.choice is not None,
        )
        if place.number not in kind.pools:
            kind.pools[place.number] = self._recorder.pool()
        pool = kind.pools[place.number]
        before = [(buffer, buffer.clone()) for buffer in module.buffers()]
        with self._recorder.rehearsing():
            work.forward()
            work.backward()
        put_back(before)  # the rehearsal has moved running statistics
        try:
            forward = self._recorder.record(work.forward, pool)
            backward = nothing if work.ends else self._recorder.record(work.backward, pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._tell(candidate, error)
            forward, backward = work.forward, work.backward  # done anew each time
        numbers = tuple(source.number for source in place.sources)
        return Recorded(work, forward, backward, numbers, place.target.number)

    def _tell(self, candidate: Callable[..., Any], error: RuntimeError) -> None:
        if not self._told:
            reason = str(error).partition("\n")[0]
            print(
                f"warning: a {type(candidate).__name__} cannot be recorded ({reason}); it runs as without "
                "runtime.cuda_graphs, as do others of which this holds",
                file=sys.stderr,
            )
        self._told = True

    @torch.no_grad()
    def _expected(self, states: Sequence[Tensor]) -> list[Any]:
        """What the module itself returns."""
        before = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        call = self._module._call_impl
        returned = call(list(states)) if isinstance(self._module, Cell) else call(*states)
        put_back(before)
        return list(returned) if isinstance(returned, list | tuple) else [returned]

    @torch.no_grad()
    def _check(self, values: Sequence[Tensor], expected: Sequence[Any]) -> None:
        """Raises ConfigError if they differ: tracing took another way through the module's code than a batch does."""
        close = len(expected) == len(values) and all(
            isinstance(two, Tensor) and one.shape == two.shape and (one - two).norm() <= 0.1 * two.norm()
            for one, two in zip(values, expected, strict=True)
        )
        if not close:
            raise ConfigError(
                f"{type(self._module).__name__} computes something else when it is replayed, expected the same",
                fix="set runtime.cuda_graphs=false, or write its forward pass so that torch.fx can trace it",
            )


def drawn_by(choice: Choice) -> int:
    """Its candidate that runs, under the gate of a drawn one."""
    assert choice.gate is not None
    assert choice.gate.drawn is not None
    return choice.gate.drawn


def plan(block: Block, cell: Cell) -> list[tuple[list[int], bool]]:
    """See `living`."""
    operations = [[None if place.choice is None else place.choice.alone for place in row] for row in block.rows]
    return living(operations, inputs=cell.inputs, outputs=cell.outputs)


def nothing() -> None:
    pass


def put_back(buffers: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


class Work:
    """What is recorded of one operation: its output goes to a slot, its gradients to where they belong.

    passes_on: whether its sources get one. gate: () where the gradient of its hard gate is added up; None if it has
    none. weights: that get a gradient. adds: to what is in the slot, instead of taking its place. widens: the slot has
    the widest type that candidates may give.
    """

    def __init__(
        self,
        operation: Callable[..., Any],
        sources: Sequence[Slot],
        target: Slot,
        *,
        passes_on: Sequence[bool],
        gate: Tensor | None,
        weights: Sequence[nn.Parameter],
        adds: bool,
        widens: bool,
    ) -> None:
        self.operation, self.sources, self.target, self.passes_on = operation, sources, target, passes_on
        self.gate, self.weights, self.adds, self.widens = gate, weights, adds, widens
        self.gradients: Sequence[Tensor | None] = ()  # of the weights, once `backward` has run or is recorded
        self.ends = False  # whether no gradient passes
        self._one = None if gate is None else torch.ones_like(gate, requires_grad=True)
        self._passed: tuple[list[Tensor], Tensor] | None = None  # what the last forward pass took and gave

    def forward(self) -> None:
        taken = [
            slot.value.detach().requires_grad_(needs) for slot, needs in zip(self.sources, self.passes_on, strict=True)
        ]
        device = taken[0].device.type
        # A weight that is cast is cast in each recording, which may not find what another left in the cache.
        precision = torch.autocast(
            device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device), cache_enabled=False
        )
        with torch.enable_grad(), precision:
            if self._one is not None:
                assert isinstance(self.operation, nn.Module)  # a candidate
                output = HardGate(self._one).run(self.operation, *taken)
            elif isinstance(self.operation, nn.Module):
                output = self.operation._call_impl(*taken)  # not __call__, which may be replaced by a replay
            else:
                output = self.operation(*taken)
        if not self.target.made:
            wide = [output.dtype, *(one.dtype for one in taken)] if self.widens else [output.dtype]
            self.target.make(output, functools.reduce(torch.promote_types, wide))
        if self.adds:
            self.target.value.add_(output.detach())
        else:
            self.target.value.copy_(output.detach())
        self._passed = taken, output

    def backward(self) -> None:
        assert self._passed is not None  # forward has run
        (taken, output), self._passed = self._passed, None
        wanted = [one for one in taken if one.requires_grad]
        wanted += [*([] if self._one is None else [self._one]), *self.weights]
        self.ends = not wanted or not output.requires_grad
        if self.ends:
            return
        found = list(torch.autograd.grad(output, wanted, self.target.gradient.to(output.dtype), allow_unused=True))
        places = [slot.gradient for slot, needs in zip(self.sources, self.passes_on, strict=True) if needs]
        for place in places if self.gate is None else [*places, self.gate]:
            if (gradient := found.pop(0)) is not None:
                place.add_(gradient)
        self.gradients = found


class Run:
    """One pass of a tape: what runs, in order.

    empty: nodes that are 0. of_gates: where gates get a gradient, None if they get none.
    """

    def __init__(
        self, tape: Tape, kind: Kind, recorded: Sequence[Recorded], empty: Sequence[int], *, of_gates: Tensor | None
    ) -> None:
        self.inputs, self.outputs = tape.inputs, [node.number for node in tape.outputs()]
        self.slots, self.recorded, self.of_gates = kind.slots, recorded, of_gates
        sums = dict.fromkeys([one.target for one in recorded if one.work.adds])
        self.zeros = [self.slots[node].value for node in (*sums, *empty)]

    def forward(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for slot, state in zip(self.slots, states, strict=False):
            slot.value.copy_(state)
        if self.zeros:
            torch._foreach_zero_(self.zeros)
        for one in self.recorded:
            one.forward()
        return tuple(self.slots[node].value.detach() for node in self.outputs)

    def backward(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """gradients: of the outputs, None for 0. Returns those of the states, None for those that had no part."""
        arrived = {node: g for node, g in zip(self.outputs, gradients, strict=True) if g is not None}
        # As by autograd, what nothing comes back to gets no gradient, which is not the same as one of 0.
        reached = [node in arrived for node in range(len(self.slots))]
        running = []
        for one in reversed(self.recorded):
            if reached[one.target] and not one.work.ends:
                running.append(one)
                for source in one.sources:
                    reached[source] = True
        zeros = [self.slots[node].gradient for node, is_ in enumerate(reached) if is_ and node not in arrived]
        torch._foreach_zero_(zeros if self.of_gates is None else [*zeros, self.of_gates])
        for node, gradient in arrived.items():
            self.slots[node].gradient.copy_(gradient)
        for one in running:
            one.backward()
            for weight, found in zip(one.work.weights, one.work.gradients, strict=False):
                if weight.grad is None:
                    weight.grad = found
                elif weight.grad is found:
                    raise RuntimeError("a gradient is of one pass: set those of the weights to None before the next")
                elif found is not None:  # the module runs in other places too
                    weight.grad = weight.grad + found
        return [self.slots[node].gradient if reached[node] else None for node in range(self.inputs)]


class _Replay(torch.autograd.Function):
    """One pass of a tape, as a function of its states and of the values of all gates.

    anchor: requires a gradient if weights do; it gets none, and they have theirs in ``.grad``.
    """

    @staticmethod
    def forward(
        ctx: Any, run: Run, anchor: Tensor | None, all_values: Tensor | None, *states: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.set_materialize_grads(False)
        return run.forward(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        of_states = ctx.run.backward(gradients)
        return None, None, ctx.run.of_gates, *of_states
