"""The object that is called in place of a module that is replayed."""

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from nas.methods.cuda_graphs.account import MIB, Account
from nas.methods.cuda_graphs.draws import Draws, is_of_one
from nas.methods.cuda_graphs.eager_check import Reference
from nas.methods.cuda_graphs.recorded_op import NotReplayableError, OutputUse, Recorded, Slot, Work, places_of
from nas.methods.cuda_graphs.recorder import Recorder, is_out_of_memory
from nas.methods.cuda_graphs.replay_pass import NOTHING, Draw, Kind, Level, Pass, Run, nothing
from nas.methods.cuda_graphs.trace import Node, Place, Tape, tapes
from nas.runtime.buffers import Buffers
from nas.spaces.cell import Cell
from nas.supernet.choice import Choice, Gate
from nas.supernet.hard_gate import NORMS, HardGate

ACTIVE = operator.attrgetter("active")


def replay(supernet: nn.Module, recorder: Recorder) -> Account:
    """Lets the training steps of a supernet be replayed if they draw one operation per choice.

    Changes the supernet in place.

    Copies of the supernet are not replayed. Returns the account of what is recorded.
    """
    account = Account(recorder)
    token = next(module for module in supernet.modules() if isinstance(module, Choice))
    found = dict(tapes(supernet))
    # A module that is shared may be a part of another one that is replayed, and is not to be replayed within that.
    inside = {part for module in found for part in module.modules() if part is not module}
    every = sum(isinstance(module, Choice) for module in supernet.modules())
    count = sum(isinstance(part, Choice) for part in inside.union(found))
    if count < every:
        account.warn(
            "untraceable",
            f"runtime.cuda_graphs replays {count} of the {every} choices of a {type(supernet).__name__}, the "
            "others run as without: see nas/methods/cuda_graphs for what it asks of a model",
        )
    for module, tape in found.items():
        if module not in inside:
            # What Module.compile sets: called in place of the module, and left out of its copies.
            module._compiled_call_impl = Replayed(
                module, tape, recorder, account, token=token, weights=list(supernet.parameters())
            )
    return account


class Replayed:
    """Calls a module: with recordings in training steps of drawn candidates, otherwise as it is.

    token: a choice of the supernet. Its gate is another object in every pass, which shows when a module runs a second
    time in one pass. Such a call is not replayed, because the slots hold the values of the first call. weights: of the
    supernet; they require a gradient in weight steps only.
    """

    def __init__(
        self,
        module: nn.Module,
        tape: Tape,
        recorder: Recorder,
        account: Account,
        *,
        token: Choice,
        weights: Sequence[nn.Parameter],
    ) -> None:
        self._module, self._tape, self._recorder, self._account = module, tape, recorder, account
        self._token, self._weights = token, weights
        self._places = list(tape.places())  # by their numbers
        self._draws = Draws(tape)
        self._drop_paths = [block.cell.drop_path for block in tape.blocks if block.cell is not None]
        self._outputs = tape.outputs()
        self._ends = tape.inputs, [node.number for node in self._outputs]
        self._norms = norms_of_one(self._places)
        self._pass: Any = None
        self._given_up = False
        self._kinds: dict[Any, Kind] = {}
        # What a weight step's outputs require a gradient through: the weights themselves get theirs past autograd.
        self._anchor = torch.zeros((), device=recorder.device, requires_grad=True)
        self._found: Mapping[str, Sequence[Choice]] = {}
        self._keys: Sequence[str] = ()  # of the groups of choices, with that of the token at the end
        self._given: Mapping[str, Gate] | None = None
        self._freezes = False
        self._ordinary: AbstractContextManager[Any] | None = None
        self._opened = ExitStack()

    def forget(self) -> None:
        """Drops everything that is recorded."""
        self._kinds.clear()
        self._draws = Draws(self._tape)

    @contextmanager
    def step(
        self,
        found: Mapping[str, Sequence[Choice]],
        by_key: Mapping[str, Gate],
        ordinary: AbstractContextManager[Any],
        *,
        frozen: bool,
    ) -> Iterator[None]:
        """The context of a pass of the supernet and its backward pass, if this object replays the whole supernet.

        found: its choices. by_key: their gates. frozen: whether the weights get no gradients. ordinary: the context
        that sets all this in choices and weights. It takes longer than a replayed pass, which does not need it, and is
        entered before anything else runs.
        """
        if self._found is not found:
            key_of = {choice: key for key, sharing in found.items() for choice in sharing}
            asked = [*(choices[0] for choices in self._draws.alike), self._token]
            self._found, self._keys = found, [key_of[choice] for choice in asked]
        self._given, self._freezes, self._ordinary = by_key, frozen, ordinary
        try:
            with self._opened:
                yield
        finally:
            self._given, self._freezes, self._ordinary = None, False, None

    def _open(self) -> None:
        """Enters the ordinary context of the step, if that has not happened."""
        if self._ordinary is not None:
            self._opened.enter_context(self._ordinary)
            self._ordinary = None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        states = inputs[0] if isinstance(self._module, Cell) and len(inputs) == 1 else inputs
        if not named and self._replays(states) and (gates := self._gates()) is not None:
            *gates, token = gates
            try:
                kind = self._kind(states)
                draw = self._draws.of(tuple([gate.drawn or 0 for gate in gates]))  # none is None, see `_gates`
                # Or nothing has told yet what zeros are asked for.
                if all(kind.slots[node].made for node in draw.empty):
                    result = self._replay(states, kind, draw, gates)
                    self._pass = token
                    return result
            except NotReplayableError as error:
                self._give_up(str(error))
        self._open()
        return self._module._call_impl(*inputs, **named)

    def _replays(self, states: Sequence[Any]) -> bool:
        if self._given_up or not self._module.training or not torch.is_grad_enabled():
            return False
        if len(states) != self._tape.inputs:
            return False
        for state in states:
            if not isinstance(state, Tensor) or state.device != self._recorder.device:
                return False
        return not any(map(ACTIVE, self._drop_paths))

    def _gates(self) -> list[Gate] | None:
        """Returns the gates of the groups of choices and, at the end, that of the token.

        Returns None if a pass under these gates cannot be replayed.
        """
        if self._given is not None:
            found = [self._given[key] for key in self._keys]
        else:
            for first, *others in self._draws.alike:
                if any(other.gate is not first.gate for other in others):
                    self._warn_of_several()
                    return None
            every = [*(choices[0].gate for choices in self._draws.alike), self._token.gate]
            found = [gate for gate in every if gate is not None]
            if len(found) < len(every):
                return None
        if found[-1] is self._pass:
            return None
        if all(map(is_of_one, found[:-1])):
            return found
        self._warn_of_several()
        return None

    def _warn_of_several(self) -> None:
        self._account.warn(
            "several",
            "runtime.cuda_graphs replays passes in which one candidate of each choice counts; here the sampler has "
            "several that do, such passes run as without",
        )

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._kinds.clear()
        self._account.warn(
            reason,
            f"a {type(self._module).__name__} is not replayed, as {reason}; it runs as without runtime.cuda_graphs",
        )

    def _kind(self, states: Sequence[Tensor]) -> Kind:
        """Raises NotReplayableError if there is no memory for another kind of input."""
        device = self._recorder.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        of = precision, *((state.shape, state.stride(), state.dtype, state.requires_grad) for state in states)
        if of not in self._kinds:
            kind = Kind([Slot() for _ in range(self._tape.nodes)])
            with memory_wanted():
                for slot, state in zip(kind.slots, states, strict=False):
                    slot.make(state, state.dtype)
                    slot.value.copy_(state)  # what is recorded runs on it before the pass begins
            self._kinds[of] = kind
        return self._kinds[of]

    def _replay(self, states: Sequence[Tensor], kind: Kind, draw: Draw, gates: Sequence[Gate]) -> Any:
        all_values = next((gate.hard.all_values for gate in gates if gate.hard is not None), None)
        learns = not self._freezes and any(weight.requires_grad for weight in self._weights)
        level_of = learns, all_values is not None
        before = None
        if not kind.levels:
            self._open()
            before = Reference(self._module, states)
        if level_of not in kind.levels:
            needs = self._needs(*level_of, [state.requires_grad for state in states])
            kind.levels[level_of] = Level(
                learns=level_of[0], hard=level_of[1], needs=needs, places=len(self._places), most=self._draws.most
            )
        if all_values is not None and kind.of_gates is None:
            kind.of_gates = torch.zeros_like(all_values)
        level = kind.levels[level_of]
        if (way := level.way(draw, kind.slots)) is None:
            self._open()
            self._record_all(draw.indices, kind, level)
            way = level.way(draw, kind.slots)
            assert way is not None  # all is recorded
        run = Run(self._ends, kind, level, way, self._recorder)
        anchor = self._anchor if level.learns else None
        values: tuple[Tensor, ...] = Pass.apply(run, anchor, all_values, *states)
        if before is not None and not before.is_like(values):
            before.put_back()
            raise NotReplayableError("tracing it took another way through its code than a batch does")
        if isinstance(self._tape.result, Node):
            return values[0]
        by_node = dict(zip(self._outputs, values, strict=True))
        result = map_aggregate(self._tape.result, lambda one: by_node[one] if isinstance(one, Node) else one)
        return list(result) if isinstance(result, list) else result

    def _record_all(self, indices: Sequence[int], kind: Kind, level: Level) -> None:
        """Records everything that runs and is not recorded yet."""
        while True:
            missing = [
                (place, index)
                for place, index, recorded in zip(self._places, indices, level.recorded, strict=True)
                if index != NOTHING and index not in recorded
            ]
            if not missing:
                return
            for place, index in missing:
                level.add(place.number, index, self._record(place, index, kind, level))
            # Where a slot was made anew, for a wider type, what was recorded for it is of no use any more.
            for other in kind.levels.values():
                other.keep_those_of(kind.slots)
            # Nothing more can be recorded into memory of which every graph is gone.
            used = {number for other in kind.levels.values() for number, of in enumerate(other.recorded) if of}
            kind.pools = {number: pool for number, pool in kind.pools.items() if number in used}

    def _needs(self, learns: bool, hard: bool, of_states: Sequence[bool]) -> list[bool]:
        """Returns for each node whether its gradient is needed."""
        needs = [*of_states, *[False] * (self._tape.nodes - len(of_states))]
        for place in self._tape.places():
            own = (learns and place.weights) or (hard and place.choice is not None)
            needs[place.target.number] |= own or any(needs[source.number] for source in place.sources)
        return needs

    def _record(self, place: Place, index: int, kind: Kind, level: Level) -> Recorded:
        """Raises NotReplayableError if there is not even memory to run the work once."""
        candidate = place.candidates[index]
        hard = place.choice.gate.hard if place.choice is not None and place.choice.gate is not None else None
        module = candidate if isinstance(candidate, nn.Module) else nn.Identity()
        gate = None
        if hard is not None and kind.of_gates is not None:
            norm = HardGate.scaled_norm(module)
            scaled = None if norm is None else (norm.num_features, norm.running_mean.dtype)  # type: ignore[union-attr]
            gate = kind.gate(hard.index, scaled)
        work = Work(
            candidate,
            [kind.slots[source.number] for source in place.sources],
            kind.slots[place.target.number],
            passes_on=[level.needs[source.number] for source in place.sources],
            gate=gate,
            weights=[weight for weight in module.parameters() if weight.requires_grad] if level.learns else [],
            norms=[norm for norm in module.modules() if norm in self._norms],
            output=OutputUse(adds=place.in_cell, widens=place.in_cell or place.choice is not None),
        )
        pool = kind.pools.setdefault(place.number, self._recorder.pool())
        before = Buffers(module)
        try:
            with memory_wanted(), self._recorder.rehearsing():
                work.forward()
                work.backward()
            in_place = before.are_same()
        finally:
            before.put_back()  # the rehearsal has moved running statistics
        forward, backward = work.forward, work.backward
        whole = False
        if in_place:
            try:
                forward = self._recorder.record(work.forward, pool)
                backward = nothing if work.ends else self._recorder.record(work.backward, pool)
                whole = True
            except RuntimeError as error:
                kind.pools[place.number] = self._recorder.pool()  # the other one may be of no use any more
                self._warn(candidate, error)
                forward, backward = work.forward, work.backward
            else:
                self._account.add(place.choice)
        else:
            self._account.warn("buffers", not_recorded(candidate, "it does not move its buffers in place"))
        nodes = (*(source.number for source in place.sources), place.target.number)
        return Recorded(
            place.number,
            work,
            work.ticks,
            bool(work.weights),
            work.ends,
            forward,
            backward,
            whole,
            nodes[:-1],
            nodes[-1],
            places_of(kind.slots, nodes),
        )

    def _warn(self, candidate: Callable[..., Any], error: RuntimeError) -> None:
        if is_out_of_memory(error):
            kept = self._recorder.kept / MIB
            self._account.warn(
                "memory",
                f"no memory is left to record more for runtime.cuda_graphs ({kept:.0f} MiB are kept for what is "
                "recorded); what is not recorded yet runs as without",
            )
        else:
            self._account.warn("recording", not_recorded(candidate, str(error).partition("\n")[0]))


def not_recorded(candidate: Callable[..., Any], reason: str) -> str:
    return (
        f"a {type(candidate).__name__} cannot be recorded ({reason}); it runs as without runtime.cuda_graphs, as do "
        "others of which this holds"
    )


@contextmanager
def memory_wanted() -> Iterator[None]:
    """A context that raises NotReplayableError if memory is short inside it."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise NotReplayableError("there is no memory for what its replay keeps") from error


def norms_of_one(places: Sequence[Place]) -> set[nn.Module]:
    """Returns the batch norms that run at one place only and whose batch counter no step reads."""
    found = Counter(
        norm
        for place in places
        for candidate in place.candidates
        if isinstance(candidate, nn.Module)
        for norm in candidate.modules()
        if type(norm) in NORMS and norm.momentum is not None and norm.num_batches_tracked is not None
    )
    return {norm for norm, count in found.items() if count == 1}
