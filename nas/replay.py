"""Supernets by replay: what a step launches on a GPU is recorded once, as CUDA graphs, and replayed from then on.

A step of a small network is bound by launching its kernels, not by running them, and a supernet cannot be recorded as a
whole, for every step runs another part of it. So each operation is recorded alone, forward and backward, between
tensors that stay where they are. A pass replays those that are drawn one after the other, without autograd, to which
the whole supernet is a single function.

What it asks of a model:
- Its forward pass can be traced (see `nas.tape`), or else as much of it as can is replayed.
- Modules compute the same whenever they are called, from their input, weights and buffers. What else they depend on, as
  the mode of a part or a number in Python, stays what it was when they were recorded; buffers are moved in place.
- Weights and buffers stay where they are: no ``.to()``, no ``load_state_dict(assign=True)``.
- Hooks inside need not run.

What it gives: a pass is differentiated once, before the next one, by ``backward()``. Weights get their gradients in
``.grad``, past autograd, valid until the next pass.

What it costs: the candidates of a choice share a piece of memory, so that each choice has for good what the largest of
them takes; the gradient of every weight, and every node's value and gradient, have a place of their own; all of it once
more for every other shape of the input. A candidate's first step takes some ten times as long.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.fx.node import map_aggregate

from nas.choice import Choice, Gate
from nas.hard_gate import HardGate
from nas.ops import Zero
from nas.spaces.cell import Cell
from nas.spaces.living import keeps_zeros, living
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
    found = dict(tapes(supernet))
    # A module that is shared may be a part of another one that is replayed, and is not to be replayed within that.
    inside = {part for module in found for part in module.modules() if part is not module}
    for module, tape in found.items():
        if module not in inside:
            # What Module.compile sets: called in place of the module, and left out of its copies.
            module._compiled_call_impl = Replayed(
                module, tape, recorder, token=token, weights=list(supernet.parameters())
            )


class NotReplayableError(Exception):
    """What a module does cannot be replayed."""


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
    """An operation's work, to be replayed. sources, target: numbers of nodes. places: where their values were."""

    work: "Work"
    forward: Replay
    backward: Replay
    sources: tuple[int, ...]
    target: int
    places: tuple[int, ...]

    def is_of(self, slots: "Sequence[Slot]") -> bool:
        return self.places == places_of(slots, (*self.sources, self.target))


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

    of_gates: the gradient of the gates of all choices. pools: by place. under_way: the pass whose values the slots
    have, until it is differentiated. lent: weights and the gradients that the last backward pass gave them.
    """

    slots: Sequence[Slot]
    of_gates: Tensor | None = None
    pools: dict[int, Any] = field(default_factory=dict)
    levels: dict[tuple[bool, bool], Level] = field(default_factory=dict)
    under_way: "Run | None" = None
    lent: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)


class Replayed:
    """Calls a module: by replay in training steps of drawn candidates, else as it is.

    token: a choice of the supernet, which has another gate in every pass: a module that runs a second time in a pass is
    not replayed again, as its slots hold the first. weights: of the supernet, which require a gradient in weight steps
    only.
    """

    def __init__(
        self, module: nn.Module, tape: Tape, recorder: Recorder, *, token: Choice, weights: Sequence[nn.Parameter]
    ) -> None:
        self._module, self._tape, self._recorder = module, tape, recorder
        self._token, self._weights = token, weights
        self._choice_at = [place.choice for place in tape.places()]  # by their numbers
        self._choices = [choice for choice in self._choice_at if choice is not None]
        self._cells = [block.cell for block in tape.blocks if block.cell is not None]
        self._outputs = tape.outputs()
        self._pass: Any = None
        self._given_up = False
        self._told = False
        self._shapes: list[Any] = []  # of the tape's blocks, once they are in training mode
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
                try:
                    result = self._replay(states, kind, [(place, drawn[place.number]) for place in running], empty)
                except NotReplayableError as error:
                    self._give_up(str(error))
                else:
                    self._pass = self._token.gate
                    return result
        return self._module._call_impl(*inputs, **named)

    def _replays(self, states: Sequence[Any]) -> bool:
        if self._given_up or not self._module.training or not torch.is_grad_enabled():
            return False
        if len(states) != self._tape.inputs or self._token.gate is None or self._token.gate is self._pass:
            return False
        if not all(isinstance(state, Tensor) and state.device == self._recorder.device for state in states):
            return False
        if any(cell.drop_path.active for cell in self._cells):
            return False
        return all(choice.gate is not None and is_of_one(choice.gate) for choice in self._choices)

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._kinds.clear()
        print(
            f"warning: a {type(self._module).__name__} is not replayed, as {reason}; it runs as without "
            "runtime.cuda_graphs",
            file=sys.stderr,
        )

    def _kind(self, states: Sequence[Tensor]) -> Kind:
        device = self._recorder.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        of = precision, *((state.shape, state.stride(), state.dtype, state.requires_grad) for state in states)
        if of not in self._kinds:
            self._kinds[of] = Kind([Slot() for _ in range(self._tape.nodes)])
            for slot, state in zip(self._kinds[of].slots, states, strict=False):
                slot.make(state, state.dtype)
                slot.value.copy_(state)  # what is recorded runs on it before the pass begins
        return self._kinds[of]

    def _selected(self, drawn: Sequence[int]) -> tuple[list[Place], list[int]]:
        """The places that run, in order, and the nodes that are 0 because nothing leads there."""
        running: list[Place] = []
        empty: list[int] = []
        plans: dict[Any, list[tuple[list[int], bool]]] = {}
        if not self._shapes:
            self._shapes = [None if block.cell is None else shape_of(block, block.cell) for block in self._tape.blocks]
        for block, shape in zip(self._tape.blocks, self._shapes, strict=True):
            if block.cell is None:
                running += block.rows[0]
                continue
            what = shape, *drawn[block.first : block.last]
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
        level_of = any(weight.requires_grad for weight in self._weights), all_values is not None
        before = None if kind.levels else Reference(self._module, states)
        if level_of not in kind.levels:
            kind.levels[level_of] = Level(*level_of, self._needs(*level_of, [state.requires_grad for state in states]))
        if all_values is not None and kind.of_gates is None:
            kind.of_gates = torch.zeros_like(all_values)
        recorded = self._all_recorded(selected, kind, kind.levels[level_of])
        of_gates = None if all_values is None else kind.of_gates
        run = Run(self._tape, kind, recorded, empty, of_gates=of_gates)
        anchor = self._anchor if level_of[0] else None
        values: tuple[Tensor, ...] = _Replay.apply(run, anchor, all_values, *states)
        if before is not None and not before.is_like(values):
            before.put_back()
            raise NotReplayableError("tracing it took another way through its code than a batch does")
        by_node = dict(zip(self._outputs, values, strict=True))
        result = map_aggregate(self._tape.result, lambda one: by_node[one] if isinstance(one, Node) else one)
        return list(result) if isinstance(result, list) else result

    def _all_recorded(self, selected: Sequence[tuple[Place, int]], kind: Kind, level: Level) -> list[Recorded]:
        while True:
            recorded, known = [], len(level.recorded)
            for place, index in selected:
                if (place.number, index) not in level.recorded:
                    level.recorded[place.number, index] = self._record(place, index, kind, level)
                recorded.append(level.recorded[place.number, index])
            if len(level.recorded) == known or all(one.is_of(kind.slots) for one in recorded):
                return recorded
            # A slot was made anew, for a wider type: what was recorded for it is of no use any more.
            for other in kind.levels.values():
                other.recorded = {key: one for key, one in other.recorded.items() if one.is_of(kind.slots)}

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
        pool = kind.pools.setdefault(place.number, self._recorder.pool())
        before = Buffers(module)
        try:
            with self._recorder.rehearsing():
                work.forward()
                work.backward()
            in_place = before.are_same()
        finally:
            before.put_back()  # the rehearsal has moved running statistics
        forward, backward = work.forward, work.backward
        if in_place:
            try:
                forward = self._recorder.record(work.forward, pool)
                backward = nothing if work.ends else self._recorder.record(work.backward, pool)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                kind.pools[place.number] = self._recorder.pool()  # the other one may be of no use any more
                self._tell(candidate, str(error).partition("\n")[0])
                forward, backward = work.forward, work.backward
        else:
            self._tell(candidate, "it does not move its buffers in place")
        nodes = (*(source.number for source in place.sources), place.target.number)
        return Recorded(work, forward, backward, nodes[:-1], nodes[-1], places_of(kind.slots, nodes))

    def _tell(self, candidate: Callable[..., Any], reason: str) -> None:
        if not self._told:
            print(
                f"warning: a {type(candidate).__name__} cannot be recorded ({reason}); it runs as without "
                "runtime.cuda_graphs, as do others of which this holds",
                file=sys.stderr,
            )
        self._told = True


class Buffers:
    """The buffers of a module as they are, to be put back."""

    def __init__(self, module: nn.Module) -> None:
        self._found = [
            (owner, name, buffer, buffer.clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]

    def are_same(self) -> bool:
        """Whether they are the same tensors, whatever is in them."""
        return all(owner._buffers.get(name) is buffer for owner, name, buffer, _ in self._found)

    @torch.no_grad()
    def put_back(self) -> None:
        for owner, name, buffer, before in self._found:
            owner._buffers[name] = buffer.copy_(before)


class Reference:
    """What a module itself makes of a batch, to compare with a replay."""

    @torch.no_grad()
    def __init__(self, module: nn.Module, states: Sequence[Tensor]) -> None:
        self._buffers = Buffers(module)
        call = module._call_impl
        try:
            returned = call(list(states)) if isinstance(module, Cell) else call(*states)
        finally:
            self._buffers.put_back()
        self._expected = list(returned) if isinstance(returned, list | tuple) else [returned]

    def put_back(self) -> None:
        """The buffers, as they were before."""
        self._buffers.put_back()

    @torch.no_grad()
    def is_like(self, values: Sequence[Tensor]) -> bool:
        """But for roundings. Numbers that are not finite are somebody else's to find."""
        if len(values) != len(self._expected):
            return False
        for one, two in zip(values, self._expected, strict=True):
            if not isinstance(two, Tensor) or one.shape != two.shape:
                return False
            if two.isfinite().all() and not (one - two).norm() <= 0.1 * two.norm():
                return False
        return True


def is_of_one(gate: Gate) -> bool:
    """Whether it lets one candidate alone run, with the gradient of a gate that `nas.sampler` made, or with none."""
    if gate.drawn is None or gate.others is not None or gate.share is not None:
        return False
    return gate.hard is None or gate.hard.all_values is not None


def places_of(slots: Sequence[Slot], nodes: Sequence[int]) -> tuple[int, ...]:
    return tuple(slots[node].value.data_ptr() for node in nodes)


def shape_of(block: Block, cell: Cell) -> Any:
    """Equal for cells in which the same places live when the same is drawn: all that `living` looks at."""
    operations = [
        tuple((isinstance(one, Zero), isinstance(one, nn.Module) and keeps_zeros(one)) for one in place.candidates)
        for row in block.rows
        for place in row
    ]
    return cell.inputs, cell.outputs, tuple(operations)


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
        self._module = operation if isinstance(operation, nn.Module) else None
        parts = [] if self._module is None else self._module.modules()
        self._writes = any(getattr(part, "inplace", False) for part in parts)  # perhaps into what it is given
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
            given = [one.clone() for one in taken] if self._writes else taken
            if self._module is None:
                output = self.operation(*given)
            elif self._one is not None:
                output = HardGate(self._one).run(self._module, *given)
            else:
                output = self._module._call_impl(*given)  # not __call__, which may be replaced by a replay
        if not isinstance(output, Tensor):
            raise NotReplayableError(f"a {type(self.operation).__name__} in it returns a {type(output).__name__}")
        self._make_room(output, taken)
        if self.adds:
            self.target.value.add_(output.detach())
        else:
            self.target.value.copy_(output.detach())
        self._passed = taken, output

    def _make_room(self, output: Tensor, taken: Sequence[Tensor]) -> None:
        """Make the target's slot, or make it anew where its type is too narrow for what this candidate gives."""
        kinds = [output.dtype, *(one.dtype for one in taken)] if self.widens else [output.dtype]
        if self.target.made:
            kinds.append(self.target.value.dtype)
        dtype = functools.reduce(torch.promote_types, kinds)
        if not self.target.made or dtype != self.target.value.dtype:
            self.target.make(output, dtype)

    def backward(self) -> None:
        assert self._passed is not None  # forward has run
        (taken, output), self._passed = self._passed, None
        wanted = [one for one in taken if one.requires_grad]
        wanted += [*([] if self._one is None else [self._one]), *self.weights]
        self.ends = not wanted or not output.requires_grad
        if self.ends:
            return
        arrived = self.target.gradient.to(output.dtype)
        with torch.autocast(output.device.type, enabled=False):  # as outside of the forward pass, where others run it
            found = list(torch.autograd.grad(output, wanted, arrived, allow_unused=True))
        places = [slot.gradient for slot, needs in zip(self.sources, self.passes_on, strict=True) if needs]
        for place in places if self.gate is None else [*places, self.gate]:
            if (gradient := found.pop(0)) is not None:
                place.add_(gradient)
        taken_places = {arrived.untyped_storage().data_ptr()}
        self.gradients = [
            None if gradient is None else own(gradient, weight, taken_places)
            for gradient, weight in zip(found, self.weights, strict=True)
        ]


def own(gradient: Tensor, weight: Tensor, taken: set[int]) -> Tensor:
    """The gradient in a place that is in no other use, and laid out as the weight, as optimisers expect."""
    place = gradient.untyped_storage().data_ptr()
    if place in taken or gradient.stride() != weight.stride():
        gradient = torch.empty_like(weight).copy_(gradient)
        place = gradient.untyped_storage().data_ptr()
    taken.add(place)
    return gradient


class Run:
    """One pass of a tape: what runs, in order.

    empty: nodes that are 0. of_gates: where gates get a gradient, None if they get none.
    """

    def __init__(
        self, tape: Tape, kind: Kind, recorded: Sequence[Recorded], empty: Sequence[int], *, of_gates: Tensor | None
    ) -> None:
        self.kind = kind
        self.inputs, self.outputs = tape.inputs, [node.number for node in tape.outputs()]
        self.slots, self.recorded, self.of_gates = kind.slots, recorded, of_gates
        self.learns = any(one.work.weights for one in recorded)
        sums = dict.fromkeys([one.target for one in recorded if one.work.adds])
        self.zeros = [self.slots[node].value for node in (*sums, *empty)]

    def forward(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        self.kind.under_way = self
        for slot, state in zip(self.slots, states, strict=False):
            slot.value.copy_(state)
        if self.zeros:
            torch._foreach_zero_(self.zeros)
        for one in self.recorded:
            one.forward()
        return tuple(self.slots[node].value.detach() for node in self.outputs)

    def backward(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """gradients: of the outputs, None for 0. Returns those of the states, None for those that had no part.

        Raises RuntimeError where the places that this pass needs hold something else by now.
        """
        if self.kind.under_way is not self:
            raise RuntimeError("a replayed pass is differentiated once, and before the next one")
        if any(weight.grad is gradient for weight, gradient in self.kind.lent) and self.learns:
            raise RuntimeError("a gradient is of one pass: set those of the weights to None before the next")
        self.kind.under_way = None
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
        if self.of_gates is not None:
            zeros.append(self.of_gates)
        if zeros:
            torch._foreach_zero_(zeros)
        for node, gradient in arrived.items():
            self.slots[node].gradient.copy_(gradient)
        lent = self.kind.lent = [] if self.learns else self.kind.lent
        for one in running:
            one.backward()
            for weight, found in zip(one.work.weights, one.work.gradients, strict=False):
                if found is None:
                    continue
                if weight.grad is None:
                    weight.grad = found
                    lent.append((weight, found))
                else:  # the module runs in other places too
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
