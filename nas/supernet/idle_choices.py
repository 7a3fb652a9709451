"""Finds choices that a model holds, but whose candidates have no part in its outputs."""

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nas.data.inputs import Inputs, each
from nas.runtime import distributed
from nas.runtime.runtime import device_of
from nas.supernet.choice import Gate, choices, gates
from nas.supernet.undisturbed import undisturbed

NAMED = 3  # choices that a warning lists
PASSES = 4  # in which a choice may run


def warn_of_idle_choices(model: nn.Module, inputs: Inputs) -> None:
    """Prints a warning of the choices that `idle_choices` finds, if there are any."""
    idle = idle_choices(model, inputs)
    if idle and distributed.first():
        print(
            f"warning: the choice {', '.join(idle[:NAMED])}{', ...' if len(idle) > NAMED else ''} has no part in "
            "what the model returns, as it does not run, or runs without gradients: what is derived for it is left to "
            "chance",
            file=sys.stderr,
        )


def idle_choices(model: nn.Module, inputs: Inputs) -> list[str]:
    """Returns the keys of the choices from which no gradient can come: those that do not run, and those that run
    without gradients.

    inputs: a small batch. Runs the model with all candidates, in training mode, as only those passes have gradients:
    once, and again where a choice may have been left out at random. Changes nothing. Follows the graph of the outputs
    and computes no gradient. Returns nothing if the model does not run in this way.
    """
    found = choices(model)
    device = device_of(model)
    weights = {
        key: [torch.full((), 1 / len(sharing[0].names), device=device, requires_grad=True) for _ in sharing[0].names]
        for key, sharing in found.items()
    }
    by_key = {key: Gate(tuple(row), None) for key, row in weights.items()}
    idle = list(found)
    for seed in range(PASSES):
        outputs: object = None
        opened = gates(found, by_key)
        with contextlib.suppress(Exception), torch.enable_grad(), undisturbed(model, seed=seed), opened:
            outputs = model.train()(*(tensor.clone() for tensor in each(inputs)))
        if not isinstance(outputs, Tensor) or not outputs.requires_grad:
            return []
        reached = {id(leaf) for leaf in leaves(outputs)}
        idle = [key for key in idle if not any(id(weight) in reached for weight in weights[key])]
        if not idle:
            break
    return idle


def leaves(output: Tensor) -> Iterator[Tensor]:
    """Yields the leaves of the graph of a tensor."""
    waiting, seen = [output.grad_fn], {output.grad_fn}
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        new = {one for one, _ in node.next_functions} - seen
        seen |= new
        waiting.extend(new)
