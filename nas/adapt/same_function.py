"""Checks that a network runs as before once choices stand in it."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nas.errors import NasError, SpaceError, described
from nas.supernet.choice import Choice, Gate, choices, gates
from nas.supernet.undisturbed import undisturbed

Example = Tensor | Sequence[Any] | Mapping[str, Any]


def refuse_changed(
    model: nn.Module, made: Mapping[str, Choice], example: Example, expected: list[Tensor] | None
) -> None:
    """Raises SpaceError for a choice that a forward pass does not reach, though it reaches the module in its place, and
    for a model that does not run as before with the modules themselves chosen. expected: its outputs before; None where
    they cannot be compared."""
    ran: set[str] = set()
    found = choices(model)
    with contextlib.ExitStack() as hooks, gates(found, {key: Gate(None, 0) for key in found}):
        for path, choice in made.items():
            hooks.enter_context(choice.register_forward_pre_hook(functools.partial(_add, ran, path)))
        try:
            outputs = outputs_of(model, example)
        except NasError:
            raise
        except Exception as error:  # whatever the model's own code raises
            raise SpaceError(
                f"the model does not run with choices in it, as it asks for the type or attributes of a module "
                f"({described(error)})",
                fix="leave out of the pattern what the model looks at, or use a module inside of it, or around it",
            ) from error
    for path in made:
        if path not in ran:
            raise SpaceError(
                f"the module at {path} is reached past its place in the model, through a list or another attribute, "
                "where a choice would not run",
                fix="let the forward pass use the attribute, or leave the module out of the pattern",
            )
    if expected is not None and not same(expected, outputs):
        raise SpaceError(
            "the model gives other outputs with choices in it, though the modules themselves are chosen, as it asks "
            f"for the type or attributes of a module at one of {', '.join(made)}",
            fix="leave out of the pattern what the model looks at, or use a module inside of it, or around it",
        )


def outputs_of(model: nn.Module, example: Example) -> list[Tensor]:
    """The tensors that the model returns for the example, in eval mode, without gradients, with the same seed."""
    with undisturbed(model, seed=0), torch.no_grad():
        return [leaf for leaf in tree_leaves(called(model, example)) if isinstance(leaf, Tensor)]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return [one.shape for one in some] == [one.shape for one in others] and all(
        torch.allclose(one.to(other.dtype), other, equal_nan=True) if other.is_floating_point() else one.equal(other)
        for one, other in zip(some, others, strict=True)
    )


def _add(ran: set[str], path: str, *_: Any) -> None:
    ran.add(path)


def called(model: nn.Module, example: Example) -> Any:
    if isinstance(example, Tensor):
        return model(example)
    return model(**example) if isinstance(example, Mapping) else model(*example)
