"""Finds candidates that return their input where the model writes into it later, as nn.ReLU(inplace=True) does.

A search copies such an output. The derived network does not, so it would compute something else.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.inputs import Inputs, each
from nas.errors import SpaceError
from nas.supernet.choice import Choice, Gate, choices, gates, tensors_in
from nas.supernet.every_candidate import Part
from nas.supernet.undisturbed import undisturbed


class ReturnedInputs:
    """Notes what candidates return in a forward pass of a model, see `nas.supernet.every_candidate`."""

    def __init__(self) -> None:
        self._first: dict[Choice | None, list[Tensor]] = {}
        self._noted: list[tuple[Part, list[Tensor], list[int]]] = []

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
        for part, watched, versions in self._noted:
            if [one._version for one in watched] == versions:
                continue
            if not same(*(outputs(model, inputs, part, copying=copying) for copying in (False, True))):
                path = next(path for path, module in model.named_modules() if module is part.choice)
                raise SpaceError(
                    f"the candidate {part.name!r} of the choice at {path!r} returns its input, and the model writes "
                    "into it later, though it needs the input again",
                    fix="let what follows not work in place, or let the candidate return a copy: x.clone()",
                )


def outputs(model: nn.Module, inputs: Inputs, part: Part, *, copying: bool) -> list[Tensor]:
    """What the model returns with the candidate drawn. copying: whether the output of its choice is copied."""
    found = choices(model)
    drawn = {key: sharing[0].names[0] for key, sharing in found.items()} | dict(part.condition)
    by_key = {key: Gate(None, sharing[0].names.index(drawn[key])) for key, sharing in found.items()}
    assert part.choice is not None  # of a candidate
    handle = part.choice.register_forward_hook(lambda module, given, output: output.clone() if copying else output)
    try:
        with undisturbed(model, seed=0), torch.no_grad(), gates(found, by_key):
            return tensors_in([model(*(one.clone() for one in each(inputs)))])
    finally:
        handle.remove()


def memory(tensors: Iterable[Any]) -> set[int]:
    return {one.untyped_storage().data_ptr() for one in tensors if isinstance(one, Tensor)} - {0}


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.allclose(one, other, equal_nan=True) for one, other in zip(some, others, strict=True))
