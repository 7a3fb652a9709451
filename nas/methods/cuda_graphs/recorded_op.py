"""The unit of recording: one operation, forward and backward, between tensors that keep their place in memory."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.methods.cuda_graphs.recorder import Replay
from nas.runtime.precision import autocast_without_cache
from nas.supernet.hard_gate import HardGate


class NotReplayableError(Exception):
    """A module does something that cannot be replayed."""


class Slot:
    """The tensors that hold a node's value and gradient, once they exist."""

    value: Tensor
    gradient: Tensor

    def __init__(self) -> None:
        self.made = False

    def make(self, like: Tensor, dtype: torch.dtype) -> None:
        self.value, self.gradient = (torch.empty_like(like, dtype=dtype) for _ in range(2))
        self.made = True


@dataclass(frozen=True)
class GateOf:
    """The hard gate of an operation: ones, and the tensor to which the gate's gradient is added.

    Shape (C,) for an operation that takes its gate as the scale of its last norm; all norms of one width share it.
    Otherwise ().
    """

    ones: Tensor
    gradient: Tensor


class FirstTick:
    """Stands in for a norm's counter of batches, which no step reads.

    The first increment in a pass is left to the code that increments the counters of all norms at once.
    """

    def __init__(self, counter: Tensor) -> None:
        self._counter = counter
        self.ticked = False

    def add_(self, number: int) -> None:
        if self.ticked:
            self._counter.add_(number)
        self.ticked = True


@dataclass(frozen=True)
class OutputUse:
    """How an operation's output is written to its slot.

    adds: the output is added to the slot; otherwise it replaces the content. widens: the slot takes the widest type of
    the output and of the operation's inputs.
    """

    adds: bool
    widens: bool


class Work:
    """What is recorded of one operation. Its output goes to a slot, its gradients to their tensors.

    passes_on: whether its sources receive a gradient. gate: None without a hard gate. weights: those that receive a
    gradient. norms: those whose counters other code increments, see `ticks`. output: how the output is written.
    """

    def __init__(
        self,
        operation: Callable[..., Any],
        sources: Sequence[Slot],
        target: Slot,
        *,
        passes_on: Sequence[bool],
        gate: GateOf | None,
        weights: Sequence[nn.Parameter],
        norms: Sequence[nn.Module] = (),
        output: OutputUse,
    ) -> None:
        self.operation, self.sources, self.target, self.passes_on = operation, sources, target, passes_on
        self.gate, self.weights, self.adds, self.widens = gate, weights, output.adds, output.widens
        self.gradients: Sequence[Tensor | None] = ()  # of the weights, once `backward` has run or is recorded
        self.ends = False  # whether no gradient passes
        self.ticks: Sequence[Tensor] = ()  # counters of norms, to be moved by one, once `forward` has run
        self._norms = norms
        self._module = operation if isinstance(operation, nn.Module) else None
        parts = [] if self._module is None else self._module.modules()
        self._writes = any(getattr(part, "inplace", False) for part in parts)  # perhaps into what it is given
        # What the last forward pass took, gate included, and gave.
        self._passed: tuple[list[Tensor], Tensor] | None = None

    def forward(self) -> None:
        taken = [
            slot.value.detach().requires_grad_(needs) for slot, needs in zip(self.sources, self.passes_on, strict=True)
        ]
        ones = None if self.gate is None else self.gate.ones.detach().requires_grad_()
        # A weight that is cast is cast in each recording, which may not find what another left in the cache.
        precision = autocast_without_cache(taken[0].device.type)
        with torch.enable_grad(), precision, self._ticks_left_out():
            given = [one.clone() for one in taken] if self._writes else taken
            if self._module is None:
                output = self.operation(*given)
            elif ones is not None:
                output = HardGate(ones).run(self._module, *given)
            else:
                output = self._module._call_impl(*given)  # not __call__, which may be replaced by a replay
        if not isinstance(output, Tensor):
            raise NotReplayableError(f"a {type(self.operation).__name__} in it returns a {type(output).__name__}")
        self._make_room(output, taken)
        if self.adds:
            self.target.value.add_(output.detach())
        else:
            self.target.value.copy_(output.detach())
        self._passed = [*taken, *([] if ones is None else [ones])], output

    @contextmanager
    def _ticks_left_out(self) -> Iterator[None]:
        """A context in which the counters of the norms stay as they are.

        `ticks` are the counters that would have moved.
        """
        counters = [(norm, norm._buffers["num_batches_tracked"]) for norm in self._norms]
        ticks = [FirstTick(counter) for _, counter in counters if counter is not None]
        try:
            for (norm, _), tick in zip(counters, ticks, strict=True):
                norm._buffers["num_batches_tracked"] = tick  # type: ignore[assignment]
            yield
        finally:
            for norm, counter in counters:
                norm._buffers["num_batches_tracked"] = counter
        self.ticks = [
            counter for (_, counter), tick in zip(counters, ticks, strict=True) if counter is not None and tick.ticked
        ]

    def _make_room(self, output: Tensor, taken: Sequence[Tensor]) -> None:
        """Makes the target's slot, or makes it again if its type is too narrow for this candidate's output."""
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
        wanted += self.weights
        self.ends = not wanted or not output.requires_grad
        if self.ends:
            return
        arrived = self.target.gradient.to(output.dtype)
        with torch.autocast(output.device.type, enabled=False):  # as outside of the forward pass, where others run it
            found = list(torch.autograd.grad(output, wanted, arrived, allow_unused=True))
        places = [slot.gradient for slot, needs in zip(self.sources, self.passes_on, strict=True) if needs]
        for place in places if self.gate is None else [*places, self.gate.gradient]:
            if (gradient := found.pop(0)) is not None:
                place.add_(gradient)
        taken_places = {arrived.untyped_storage().data_ptr()}
        self.gradients = [
            None if gradient is None else own(gradient, weight, taken_places)
            for gradient, weight in zip(found, self.weights, strict=True)
        ]


def own(gradient: Tensor, weight: Tensor, taken: set[int]) -> Tensor:
    """Returns a tensor that nothing else uses for the gradient, laid out as the weight, as optimisers expect."""
    place = gradient.untyped_storage().data_ptr()
    if place in taken or gradient.stride() != weight.stride():
        gradient = torch.empty_like(weight).copy_(gradient)
        place = gradient.untyped_storage().data_ptr()
    taken.add(place)
    return gradient


@dataclass(frozen=True)
class Recorded:
    """An operation's recordings.

    place: its number. ticks, learns, ends: of the work, see there; learns: whether it has weights. sources, target:
    numbers of nodes. places: the tensors that held their values. whole: both directions are recorded; otherwise one of
    them runs without a recording each time.
    """

    place: int
    work: Work
    ticks: Sequence[Tensor]
    learns: bool
    ends: bool
    forward: Replay
    backward: Replay
    whole: bool
    sources: tuple[int, ...]
    target: int
    places: tuple[int, ...]

    def is_of(self, slots: Sequence[Slot]) -> bool:
        return self.places == places_of(slots, (*self.sources, self.target))


def places_of(slots: Sequence[Slot], nodes: Sequence[int]) -> tuple[int, ...]:
    return tuple(slots[node].value.data_ptr() for node in nodes)
