"""The one mechanism of the project: a module that is one of several, and the gates that say which.

A supernet is any ``nn.Module`` that contains `Choice` modules. A step opens a `gates` context, inside which every
choice knows what to run; outside of it a forward pass is an error. `nas.supernet.freezing` leaves a plain network.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import ConfigError, SpaceError
from nas.supernet.dropped_edge import OutputForm, copied as copies, first_tensor
from nas.supernet.hard_gate import HardGate, transformed
from nas.supernet.recomputation import refuse_reentrant
from nas.supernet.unregistered import refuse_unregistered


@dataclass(frozen=True)
class Gate:
    """The weights, or the drawn candidate, of one choice in one step.

    weights: (K,) factor of each candidate's output, or None when only one runs; () for an edge that is left out.
    drawn: the only candidate that runs, or None when all of them run.
    hard: the gate of the drawn candidate; None when nothing differentiates through it.
    others: (K,) gates; those of undrawn candidates, 0, are added to the output for their gradient. None for none.
    share: a factor of the choice's output, () tensor: its part of the sum that it takes part in; None for 1.
    """

    weights: tuple[Tensor, ...] | None
    drawn: int | None
    hard: HardGate | None = None
    others: tuple[Tensor, ...] | None = None
    share: Tensor | None = None


# The edge is left out, as `freeze` leaves out what was not chosen.
LEFT_OUT = Gate((), None)


class UnreadablePartError(SpaceError, AttributeError):
    """Something was read of a choice that its candidates may have. An AttributeError, so that it may be asked for."""


class UngatedError(SpaceError):
    """A choice was run where nothing says which candidates run."""


class Choice(nn.Module):
    """One of several candidate modules, to be decided by the search.

    candidates: name -> module. All take the same inputs and return one tensor of the same shape. A candidate may
    itself be, or contain, a choice.
    key: choices with equal keys share one logit vector; None: the choice's path in the model, its own.
    group: names what competes when edges are dropped (the edges into one node), None when nothing does.
    weighed: learn which share of its group's sum it has as well (edge normalisation, Xu et al. 2020). It counts when
    edges are dropped, and is 1 in a frozen network.
    added: the outputs of its group are added up, so that an edge that is dropped is the number 0, which costs nothing.
    Otherwise it is a tensor of zeros, which may be joined or stacked with the others as well.

    Hooks on a choice are kept when it is frozen: they see the module that runs in its place.

    What follows may write into the choice's output. Candidates that run side by side get the same input, and one that
    begins with a module that works in place a copy of it.

    Raises SpaceError for anything but two or more named modules; in a forward pass outside of `gates`, where a
    candidate writes into an input that others run on, or under checkpointing that loses gradients; and for attributes
    that it has not, like the `weight` of a layer in whose place it stands.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module],
        *,
        key: str | None = None,
        group: str | None = None,
        weighed: bool = False,
        added: bool = False,
    ) -> None:
        super().__init__()
        if not hasattr(candidates, "items"):
            raise SpaceError(
                f"a Choice takes its candidates as a dict of name -> module, got a {type(candidates).__name__}",
                fix="name them, e.g. Choice({'relu': nn.ReLU(), 'silu': nn.SiLU()})",
            )
        entries: Iterable[tuple[Any, Any]] = candidates.items()  # what a user wrote, whatever its types
        for name, candidate in entries:
            if not isinstance(name, str) or not isinstance(candidate, nn.Module):
                got = f"a {type(candidate).__name__} called" if isinstance(name, str) else "the name"
                raise SpaceError(
                    f"candidates of a Choice are modules with names that are strings, got {got} {name!r}",
                    fix="write the name in quotes, and a function as a module, e.g. nn.ReLU()",
                )
        if len(candidates) < 2:
            raise SpaceError(
                f"a Choice needs at least 2 candidates, got {len(candidates)} ({', '.join(candidates) or 'none'})",
                fix="add candidates, or use the module itself where there is nothing to choose",
            )
        if weighed and group is None:
            raise SpaceError(
                f"a Choice that is weighed has a share of a group, got group=None for {', '.join(candidates)}",
                fix="name the group of choices whose outputs are added up, or leave weighed=True out",
            )
        self.names = tuple(candidates)
        self.key = key
        self.group = group
        self.weighed = weighed
        self.added = added
        self._forms: dict[tuple[torch.Size, torch.dtype], OutputForm] = {}  # of its output, by the input's form
        # A list, not a ModuleDict: candidate names may hold dots, or be called `type` or `keys`.
        self.candidates = nn.ModuleList(candidates.values())
        self.gate: Gate | None = None
        # Whether what follows writes into the output; None until a backward pass has told.
        self.overwritten: bool | None = None
        self._in_place: list[bool] | None = None  # see `begins_in_place`, once it has been asked
        self._writes: dict[int, bool] = {}  # candidate -> whether it writes into its input, once it has run

    def forward(self, *inputs: Any, **named: Any) -> Tensor | int:
        gate = self._open_gate()
        if gate.drawn is not None:
            output = self._drawn(gate, gate.drawn, *inputs, **named)
        elif gate.weights:
            output = functools.reduce(operator.add, self._terms(gate.weights, *inputs, **named))
        else:
            return 0 if self.added else self._zeros(*inputs, **named)
        return output if gate.share is None else gate.share * output

    def _open_gate(self) -> Gate:
        """The gate that is set. Raises SpaceError where there is none, or where it could not do its work."""
        if self.gate is None:
            raise UngatedError(
                f"a Choice between {', '.join(self.names)} was run without gates",
                fix="run the supernet inside `with gates(...)`, or freeze() it first",
            )
        if self.training and not torch.is_grad_enabled():
            refuse_reentrant(f"a Choice between {', '.join(self.names)}")
        if self.gate.drawn is None and self.gate.weights is None:
            raise SpaceError("gates without weights must say which candidate is drawn", fix="set Gates.drawn")
        return self.gate

    def _drawn(self, gate: Gate, index: int, *inputs: Any, **named: Any) -> Tensor:
        """The output of the only candidate that runs, and what is added for the gradient of the others."""
        candidate = self._candidate(index)
        if gate.hard is None:
            output: Tensor = candidate(*inputs, **named)
        else:
            output = self._hard(gate.hard, index, *inputs, **named)
            if self.overwritten is not False and not transformed() and gate.hard.keeps_output(candidate):
                output = self._copied(output)
        if gate.others is None:
            return output
        return output + sum(gate.others[i] for i in range(len(self.names)) if i != index)

    def _hard(self, hard: HardGate, index: int, *inputs: Any, **named: Any) -> Tensor:
        """The output of a candidate, which gets a copy of its input if it writes into it, or may: the choice that the
        input comes from may have met candidates only that do not."""
        candidate = self._candidate(index)
        if transformed() or not self._writes.get(index, True):
            return hard.run(candidate, *inputs, **named)
        own, others = copies(inputs), dict(zip(named, copies(named.values()), strict=True))
        output = hard.run(candidate, *own, **others)
        # In evaluation mode nothing is learnt of it: dropout, for one, writes in training only.
        self._writes[index] = not self.training or any(one._version for one in tensors_in((*own, *others.values())))
        return output

    def _zeros(self, *inputs: Any, **named: Any) -> Tensor:
        """Returns zeros of the output's shape and type. Runs the first candidate once for each form of input."""
        given = first_tensor((*inputs, *named.values()))
        known = given.shape, given.dtype
        if known not in self._forms:
            self._forms[known] = OutputForm.of(self._candidate(0), inputs, named)
        return self._forms[known].zeros(given)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            names = ", ".join(self.__dict__.get("names", ()))  # not there yet in a copy that is being made
            raise UnreadablePartError(
                f"{name!r} was read of a Choice between {names}, which is to be called",
                fix="call it in the forward pass; torch's transformer layers do after "
                "torch.backends.mha.set_fastpath_enabled(False), beside the model",
            ) from None

    def _copied(self, output: Tensor) -> Tensor:
        """A copy of the output, which is kept for its gate's gradient, for what follows to write into. Made until a
        backward pass has shown that nobody does."""
        copy = output.clone()
        if self.overwritten is None and copy.requires_grad:
            same = copy.detach()  # counts what is written into either

            def tell(gradient: Tensor) -> None:
                self.overwritten = self.overwritten or same._version > 0

            copy.register_hook(tell)
        return copy

    def _terms(self, weights: Sequence[Tensor], *inputs: Any, **named: Any) -> Iterator[Tensor]:
        """Each candidate's output times its weight."""
        if self._in_place is None:
            self._in_place = [begins_in_place(candidate) for candidate in self.candidates]
        given = tensors_in((*inputs, *named.values()))
        before = [one._version for one in given]
        # The row of gates may be longer than this choice's candidates: see the padding in nas.supernet.arch_params.
        for weight, op, in_place in zip(weights, self.candidates, self._in_place, strict=False):
            own = copies(inputs) if in_place else inputs
            yield weight * op(*own, **named)
            if before != [one._version for one in given]:
                name = self.names[list(self.candidates).index(op)]
                raise SpaceError(
                    f"candidate {name!r} of a Choice between {', '.join(self.names)} writes into its input, which the "
                    "others run on as well",
                    fix="let it begin with something that is not done in place",
                )

    @property
    def alone(self) -> nn.Module | None:
        """The candidate whose output is all of the choice's under the gate that is set; None where several run, or
        where undrawn ones get a gradient."""
        gate = self.gate
        if gate is None or gate.drawn is None or gate.others is not None:
            return None
        return self._candidate(gate.drawn)

    def instead(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The choice's output where it is known to be that of one candidate (see `alone`): of call(x) in its place."""
        gate = self.gate
        assert gate is not None  # alone
        if gate.hard is None:
            output = call(x)
        else:
            assert gate.drawn is not None  # alone
            output = gate.hard.run_instead(self._candidate(gate.drawn), call, x)
        return output if gate.share is None else gate.share * output

    def _candidate(self, index: int) -> nn.Module:
        # ModuleList's own indexing takes four times as long, for some hundred choices in a step.
        candidates = tuple(self.candidates._modules.values())
        if index >= len(candidates):
            raise ConfigError(
                f"candidate {index} of a Choice between {', '.join(self.names)} is drawn, which has {len(candidates)}",
                fix="let the sampler draw no candidate whose logit is -inf: it pads the rows of choices with fewer",
            )
        candidate = candidates[index]
        assert candidate is not None  # as a Choice was given it
        return candidate

    @property
    def share(self) -> Tensor | None:
        """The factor of its output under the gate that is set, None for 1."""
        return None if self.gate is None else self.gate.share

    def described(self) -> str:
        """All that choices with one key have in common."""
        return f"{self.names} in group {self.group!r}" + (", weighed" if self.weighed else "")

    def extra_repr(self) -> str:
        return f"key={self.key!r}, names={self.names}"


def begins_in_place(module: nn.Module) -> bool:
    """Whether a module may write into its input, where the structure alone tells: at the beginning of sequences."""
    if isinstance(module, nn.Sequential):
        first = next((part for part in module if type(part) is not nn.Identity), None)
        return first is not None and begins_in_place(first)
    if isinstance(module, Choice):
        return any(map(begins_in_place, module.candidates))
    return bool(getattr(module, "inplace", False))


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Returns the tensors among the arguments of a call, also in lists and dicts. Leaves out inference tensors, which
    do not count in-place writes."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found += [] if value.is_inference() else [value]
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
        elif isinstance(value, dict):
            found += tensors_in(value.values())
    return found


def choices(model: nn.Module) -> dict[str, list[Choice]]:
    """All choices of a model by key, in module order; a choice without a key is known by its path.

    Raises SpaceError when there is none, when one is held outside of the registered children, when a path is the key of
    another choice, or when choices that share a key differ in their candidates, their group or whether they are
    weighed.
    """
    refuse_unregistered(model, Choice)
    found: dict[str, list[Choice]] = {}
    paths = {module: path for path, module in model.named_modules() if isinstance(module, Choice)}
    for choice, path in paths.items():
        found.setdefault(choice.key or path or "choice", []).append(choice)
    if not found:
        raise SpaceError(
            f"{type(model).__name__} contains no Choice, so there is nothing to search",
            fix="replace at least one of its modules by nas.Choice({'name': module, ...})",
        )
    for key, sharing in found.items():
        without_key = next((choice for choice in sharing if not choice.key), None)
        if without_key is not None and len(sharing) > 1:
            with_key = next(choice for choice in sharing if choice.key)
            raise SpaceError(
                f"the choice at {paths[without_key]!r} is known by its place, which is the key of the one at "
                f"{paths[with_key]!r}",
                fix=f"give one of them another key, or both the key {key!r} if they are to be decided together",
            )
        for other in sharing[1:]:
            if other.described() != sharing[0].described():
                raise SpaceError(
                    f"choices that share the key {key!r} must be alike, got candidates {sharing[0].described()} "
                    f"and {other.described()}",
                    fix="give them different keys, or the same candidates in the same order",
                )
    return found


@contextmanager
def gates(found: Mapping[str, Sequence[Choice]], by_key: Mapping[str, Gate]) -> Iterator[None]:
    """Set the gate of every choice (as returned by `choices`) for the forward passes inside the context."""
    # Past Module.__setattr__, which looks for weights in what it is given: a hundred choices would take a millisecond.
    chosen = [(choice.__dict__, by_key[key]) for key, sharing in found.items() for choice in sharing]
    before = [attributes["gate"] for attributes, _ in chosen]
    try:
        for attributes, gate in chosen:
            attributes["gate"] = gate
        yield
    finally:
        for (attributes, _), gate in zip(chosen, before, strict=True):
            attributes["gate"] = gate
