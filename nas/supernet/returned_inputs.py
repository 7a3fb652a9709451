"""Finds candidates that return their input where the model writes into it later, as nn.ReLU(inplace=True) does, and
candidates that write into their input themselves where the model needs it again.

A search copies such an output or input. The derived network does not, so it would compute something else.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from nas.data.inputs import Inputs, each
from nas.errors import SpaceError
from nas.supernet.choice import Choice, Gate, choices, gates, tensors_in
from nas.supernet.dropped_edge import copied
from nas.supernet.every_candidate import Part
from nas.supernet.undisturbed import undisturbed


class ReturnedInputs:
    """Notes what candidates return in a forward pass of a model, see `nas.supernet.every_candidate`."""

    def __init__(self) -> None:
        self._first: dict[Choice | None, list[Tensor]] = {}
        self._noted: list[tuple[Part, list[Tensor], list[int]]] = []
        self._writing: list[tuple[Choice, str, str]] = []

    def run(self, part: Part, run: Callable[[], Any]) -> Any:
        """Returns what a candidate returns. Notes whether it writes into its input."""
        given = tensors_in((*part.args, *part.kwargs.values()))
        before = [one._version for one in given]
        output = run()
        writes = before != [one._version for one in given] or drops_in_place(part.module)
        if part.choice and part.key and part.name and writes:
            self._writing.append((part.choice, part.key, part.name))
        return output

    def note(self, part: Part, output: Tensor) -> None:
        """output: of a candidate. The first one of each choice is what the model goes on with."""
        if part.first:
            self._first[part.choice] = tensors_in([output])
        given = tensors_in((*part.args, *part.kwargs.values()))
        if memory([output]) & memory(given):
            watched = self._first[part.choice] + given
            self._noted.append((part, watched, [one._version for one in watched]))

    def refuse_overwritten(self, model: nn.Module, inputs: Inputs) -> None:
        """Raises SpaceError for a candidate with which the model would return other outputs if it returned a copy."""
        drops = drops_in_place(model)
        for part, watched, versions in self._noted:
            if not drops and [one._version for one in watched] == versions:
                continue
            assert part.choice is not None  # of a candidate
            drawn, hook = dict(part.condition), (part.choice, copies_output)
            if not same(outputs(model, inputs, drawn), outputs(model, inputs, drawn, [hook])):
                path = next(path for path, module in model.named_modules() if module is part.choice)
                raise SpaceError(
                    f"the candidate {part.name!r} of the choice at {path!r} returns its input, and the model writes "
                    "into it later, though it needs the input again",
                    fix="let what follows not work in place, or let the candidate return a copy: x.clone()",
                )

    def refuse_writing(self, model: nn.Module, inputs: Inputs) -> None:
        """Raises SpaceError for a candidate with which the model would return other outputs if it ran on a copy."""
        found = choices(model)
        widest = max(len(sharing[0].names) for sharing in found.values())
        # All choices draw alike, then each another candidate than its neighbour.
        for index, step in itertools.product(range(widest), (0, 1)) if self._writing else ():
            rows = enumerate((key, sharing[0].names) for key, sharing in found.items())
            drawn = {key: names[(index + step * row) % len(names)] for row, (key, names) in rows}
            writing = {choice: name for choice, key, name in self._writing if name == drawn[key]}
            plain = outputs(model, inputs, drawn)
            if same(plain, outputs(model, inputs, drawn, [(one, copies_inputs) for one in writing])):
                continue
            alone = (one for one in writing if not same(plain, outputs(model, inputs, drawn, [(one, copies_inputs)])))
            one = next(alone, next(iter(writing)))
            path = next(path for path, module in model.named_modules() if module is one)
            raise SpaceError(
                f"the candidate {writing[one]!r} of the choice at {path!r} writes into its input, which the model "
                "needs again",
                fix="let it begin with something that is not done in place, e.g. nn.ReLU() without inplace=True",
            )


def copies_output(choice: Choice) -> RemovableHandle:
    return choice.register_forward_hook(lambda module, given, output: output.clone())


def copies_inputs(choice: Choice) -> RemovableHandle:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tuple(copied(args)), dict(zip(kwargs, copied(kwargs.values()), strict=True))

    return choice.register_forward_pre_hook(hook, with_kwargs=True)


def outputs(
    model: nn.Module,
    inputs: Inputs,
    drawn: Mapping[str, str],
    hooks: Sequence[tuple[Choice, Callable[[Choice], RemovableHandle]]] = (),
) -> list[Tensor]:
    """Returns the model's outputs with these candidates drawn, and the first candidates elsewhere. The model runs in
    eval mode, but its dropouts in training mode. hooks: choices, with functions that register a hook on them."""
    found = choices(model)
    by_key = {
        key: Gate(None, sharing[0].names.index(drawn.get(key, sharing[0].names[0]))) for key, sharing in found.items()
    }
    with undisturbed(model, seed=0), torch.no_grad(), gates(found, by_key), contextlib.ExitStack() as hooked:
        for one in dropouts(model):
            one.training = True
        for choice, register in hooks:
            hooked.enter_context(register(choice))
        return tensors_in([model(*(one.clone() for one in each(inputs)))])


def dropouts(model: nn.Module) -> list[_DropoutNd]:
    return [module for module in model.modules() if isinstance(module, _DropoutNd)]


def drops_in_place(model: nn.Module) -> bool:
    """Whether a dropout of the model writes into its input, which it does in training only."""
    return any(one.inplace for one in dropouts(model))


def memory(tensors: Iterable[Any]) -> set[int]:
    return {one.untyped_storage().data_ptr() for one in tensors if isinstance(one, Tensor)} - {0}


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.allclose(one, other, equal_nan=True) for one, other in zip(some, others, strict=True))
