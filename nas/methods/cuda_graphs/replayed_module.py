"""What is called in place of a module that is replayed."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from nas.methods.cuda_graphs.eager_check import Reference
from nas.methods.cuda_graphs.recorded_op import NotReplayableError, Recorded, Slot, Work, places_of
from nas.methods.cuda_graphs.recorder import Recorder
from nas.methods.cuda_graphs.replay_pass import Kind, Level, Pass, Run
from nas.methods.cuda_graphs.trace import Block, Node, Place, Tape, tapes
from nas.runtime.buffers import Buffers
from nas.spaces.cell import Cell
from nas.spaces.dead_edges import keeps_zeros, living
from nas.spaces.ops import Zero
from nas.supernet.choice import Choice, Gate


def replay(supernet: nn.Module, recorder: Recorder) -> None:
    """Let training steps of a supernet that draw one operation a choice be replayed, in place. Its copies are not."""
    token = next(module for module in supernet.modules() if isinstance(module, Choice))
    found = dict(tapes(supernet))
    # A module that is shared may be a part of another one that is replayed, and is not to be replayed within that.
    inside = {part for module in found for part in module.modules() if part is not module}
    every = sum(isinstance(module, Choice) for module in supernet.modules())
    count = sum(isinstance(part, Choice) for part in inside.union(found))
    if count < every:
        print(
            f"warning: runtime.cuda_graphs replays {count} of the {every} choices of a {type(supernet).__name__}, the "
            "others run as without: see nas/methods/cuda_graphs for what it asks of a model",
            file=sys.stderr,
        )
    for module, tape in found.items():
        if module not in inside:
            # What Module.compile sets: called in place of the module, and left out of its copies.
            module._compiled_call_impl = Replayed(
                module, tape, recorder, token=token, weights=list(supernet.parameters())
            )


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
        values: tuple[Tensor, ...] = Pass.apply(run, anchor, all_values, *states)
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
            # Nothing more can be recorded into memory of which every graph is gone.
            used = {number for other in kind.levels.values() for number, _ in other.recorded}
            kind.pools = {number: pool for number, pool in kind.pools.items() if number in used}

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


def is_of_one(gate: Gate) -> bool:
    """Whether it lets one candidate alone run, with the gradient of a gate that a sampler made, or with none."""
    if gate.drawn is None or gate.others is not None or gate.share is not None:
        return False
    return gate.hard is None or gate.hard.all_values is not None


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
