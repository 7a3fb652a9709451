"""Runs one pass of a tape. Autograd sees the pass as a single function."""

import itertools
import operator
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nas.methods.cuda_graphs.recorded_op import GateOf, Recorded, Slot, Work
from nas.methods.cuda_graphs.recorder import Launch, Recorder, Replay, one_by_one

QUIET = 20  # passes without a recording, after which what is recorded is composed
NOTHING = -1  # the index of a place at which nothing runs
TICKS = operator.attrgetter("ticks")


@dataclass(frozen=True)
class Composition:
    """The launches of a level's recordings at the moment of composing.

    holds: for each place, the indices it contains.
    """

    holds: Sequence[Set[int]]
    forward: Launch
    backward: Launch

    def covers(self, indices: Sequence[int]) -> bool:
        return all(map(operator.contains, self.holds, indices))


class Level:
    """The recordings for weight steps (learns), or for architecture steps, in which gates receive a gradient (hard).

    needs: for each node, whether it receives a gradient. places: the number of places. most: the number of draws that
    are remembered.
    """

    def __init__(self, *, learns: bool, hard: bool, needs: Sequence[bool], places: int, most: int) -> None:
        self.learns, self.hard, self.needs = learns, hard, needs
        self.recorded: list[dict[int, Recorded]] = [{} for _ in range(places)]  # of each place, by candidate
        self._forward: list[dict[int, Replay]] = [{} for _ in range(places)]
        self._backward: list[dict[int, Replay]] = [{} for _ in range(places)]  # from the last place to the first
        self._each = one_by_one(self._forward), one_by_one(self._backward)
        self._composition: Composition | None = None
        self._quiet = 0
        self._most = most
        self._ways: dict[tuple[int, ...], Way] = {}

    def way(self, draw: "Draw", slots: Sequence[Slot]) -> "Way | None":
        """Returns the `Way` of a draw. Returns None if something in it is not recorded yet."""
        if (found := self._ways.get(draw.indices)) is None:
            try:
                ran = [of[index] for of, index in zip(self.recorded, draw.indices, strict=True) if index != NOTHING]
            except KeyError:
                return None
            if len(self._ways) == self._most:
                self._ways.clear()
            found = self._ways[draw.indices] = Way(ran, draw, slots)
        return found

    def add(self, place: int, candidate: int, one: Recorded) -> None:
        self.recorded[place][candidate] = one
        self._forward[place][candidate] = one.forward
        self._backward[-1 - place][candidate] = one.backward
        self._quiet = 0

    def keep_those_of(self, slots: Sequence[Slot]) -> None:
        """Drops the recordings for slots that were made again since."""
        self._ways.clear()
        for place, recorded in enumerate(self.recorded):
            for candidate in [key for key, one in recorded.items() if not one.is_of(slots)]:
                for of in (recorded, self._forward[place], self._backward[-1 - place]):
                    del of[candidate]
                self._composition = None

    def launches(self, way: "Way", recorder: Recorder) -> tuple[Launch, Launch]:
        """Returns the functions that launch the two directions of a pass."""
        self._quiet += 1
        if self._quiet == QUIET:
            self._composition = self._composed(recorder)
        composition = self._composition
        if composition is None:
            return self._each
        if way.held_by is not composition:
            if not composition.covers(way.indices):
                return self._each
            way.held_by = composition
        return composition.forward, composition.backward

    def _composed(self, recorder: Recorder) -> Composition | None:
        whole = [{index for index, one in recorded.items() if one.whole} for recorded in self.recorded]
        both = []
        for replays, indices in ((self._forward, whole), (self._backward, whole[::-1])):
            launch = recorder.compose(
                [
                    {index: place[index] for index in held if place[index] is not nothing}
                    for place, held in zip(replays, indices, strict=True)
                ]
            )
            if launch is None:
                return None
            both.append(launch)
        return Composition([held | {NOTHING} for held in whole], *both)


@dataclass
class Kind:
    """The recordings for inputs of one kind: shapes, layouts, types, precision.

    of_gates: the gradient of the gates of all choices. scales: by width and type, the gradients of gates that are
    scales
    of norms, with a row for each choice. pools: the memory pool of each place. under_way: the pass whose values are in
    the slots and that is not differentiated yet. lent: the weights and gradients of the last backward pass.
    """

    slots: Sequence[Slot]
    of_gates: Tensor | None = None
    scales: dict[tuple[int, torch.dtype], GateOf] = field(default_factory=dict)
    pools: dict[int, Any] = field(default_factory=dict)
    levels: dict[tuple[bool, bool], Level] = field(default_factory=dict)
    under_way: "Run | None" = None
    lent: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)

    def gate(self, index: int, scaled: tuple[int, torch.dtype] | None) -> GateOf:
        """Returns the gate of one choice. scaled: width and type of the norm that takes the gate as its scale."""
        assert self.of_gates is not None  # one was asked for
        if scaled is None:
            return GateOf(torch.ones_like(self.of_gates[index]), self.of_gates[index])
        if scaled not in self.scales:
            (width, dtype), choices = scaled, len(self.of_gates)
            ones = torch.ones(width, dtype=dtype, device=self.of_gates.device)
            self.scales[scaled] = GateOf(ones, ones.new_zeros(choices, width))
        scale = self.scales[scaled]
        return GateOf(scale.ones, scale.gradient[index])


@dataclass(frozen=True)
class Draw:
    """What a pass runs.

    indices: the candidate at each place; `NOTHING` where none runs. cleared: nodes that are set to 0 first. empty: the
    cleared nodes that receive no output.
    """

    indices: tuple[int, ...]
    cleared: Sequence[int]
    empty: Sequence[int]


@dataclass(frozen=True)
class WayBack:
    """The backward pass of a draw.

    indices: from the last place to the first. learning: the operations that ran and have weights that learn. weights:
    theirs. reached: for each node, whether it receives a gradient. zeros: tensors that are set to 0 because gradients
    are added to them.
    """

    indices: Sequence[int]
    learning: Sequence[Work]
    weights: Sequence[nn.Parameter]
    reached: Sequence[bool]
    zeros: Sequence[Tensor]


class Way:
    """The plan of passes that run one draw. It is computed once. ran: the operations in it."""

    def __init__(self, ran: Sequence[Recorded], draw: Draw, slots: Sequence[Slot]) -> None:
        self.indices, self._slots = draw.indices, slots
        self.held_by: Composition | None = None  # which is known to cover it
        self.zeros = [slots[node].value for node in draw.cleared]
        self._ran = ran
        self.ticks = list(itertools.chain.from_iterable(map(TICKS, ran)))
        self.learns = any(one.learns for one in ran)
        self._back: dict[tuple[int, ...], WayBack] = {}

    def back(self, arrived: tuple[int, ...]) -> WayBack:
        """Returns the backward pass from the nodes at which a gradient has arrived."""
        if arrived not in self._back:
            # As by autograd, what nothing comes back to gets no gradient, which is not the same as one of 0.
            reached = [False] * len(self._slots)
            for node in arrived:
                reached[node] = True
            indices, learning = list(self.indices[::-1]), []
            for one in reversed(self._ran):
                if one.ends or not reached[one.target]:
                    indices[-1 - one.place] = NOTHING
                    continue
                for source in one.sources:
                    reached[source] = True
                if one.learns:
                    learning.append(one.work)
            zeros = [self._slots[node].gradient for node, is_ in enumerate(reached) if is_ and node not in arrived]
            weights = [weight for one in learning for weight in one.weights]
            self._back[arrived] = WayBack(indices, learning, weights, reached, zeros)
        return self._back[arrived]


class Run:
    """One pass of a tape.

    ends: the number of nodes that the pass is given, which come first, and the nodes that it returns.
    """

    def __init__(self, ends: tuple[int, Sequence[int]], kind: Kind, level: Level, way: Way, recorder: Recorder) -> None:
        self.kind, self.slots, self.way = kind, kind.slots, way
        self.inputs, self.outputs = ends
        self.of_gates = kind.of_gates if level.hard else None
        self.launches = level.launches(self.way, recorder)

    def forward(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        slots, way, self.kind.under_way = self.slots, self.way, self
        for slot, state in zip(slots, states, strict=False):
            slot.value.copy_(state)
        if way.zeros:
            torch._foreach_zero_(way.zeros)
        self.launches[0](way.indices)
        if way.ticks:
            torch._foreach_add_(way.ticks, 1)
        return tuple(slots[node].value.detach() for node in self.outputs)

    def backward(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """gradients: of the outputs; None for 0. Returns the gradients of the states; None for states without effect.

        Raises RuntimeError if the tensors that this pass needs hold other values by now.
        """
        kind, slots = self.kind, self.slots
        if kind.under_way is not self:
            raise RuntimeError("a replayed pass is differentiated once, and before the next one")
        for weight, gradient in kind.lent if self.way.learns else ():
            if weight.grad is gradient:
                raise RuntimeError("a gradient is of one pass: set those of the weights to None before the next")
        kind.under_way = None
        arrived = {node: g for node, g in zip(self.outputs, gradients, strict=True) if g is not None}
        way = self.way.back(tuple(arrived))
        scales = list(kind.scales.values()) if self.of_gates is not None else []
        of_gates = [] if self.of_gates is None else [self.of_gates, *(scale.gradient for scale in scales)]
        if zeros := [*way.zeros, *of_gates]:
            torch._foreach_zero_(zeros)
        for node, gradient in arrived.items():
            slots[node].gradient.copy_(gradient)
        self.launches[1](way.indices)
        for scale in scales:
            assert self.of_gates is not None  # or there were none
            self.of_gates += scale.gradient.sum(dim=1)
        if self.way.learns:
            kind.lent = lend(way)
        return [slots[node].gradient if way.reached[node] else None for node in range(self.inputs)]


def lend(way: WayBack) -> list[tuple[nn.Parameter, Tensor]]:
    """Gives the weights of the operations that ran their gradients.

    Returns the gradients that belong to the recordings.
    """
    lent = []
    # Read anew each time: what is not recorded makes others in each pass.
    gradients = [gradient for one in way.learning for gradient in one.gradients]
    for weight, found in zip(way.weights, gradients, strict=True):
        if found is None:
            continue
        if weight.grad is None:
            weight.grad = found
            lent.append((weight, found))
        else:  # the module runs in other places too
            weight.grad = weight.grad + found
    return lent


def nothing() -> None:
    """The recording of a backward pass that has nothing to do."""


class Pass(torch.autograd.Function):
    """One pass of a tape, as a function of its states and of the values of all gates.

    anchor: a tensor that requires a gradient if weights do. It receives none; weights have theirs in ``.grad``.
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
