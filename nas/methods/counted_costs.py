"""Counts the trainable parameters and the multiply-accumulates that each candidate adds to a model."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from nas.data.inputs import Inputs
from nas.errors import SpaceError
from nas.methods.cost import Cost
from nas.supernet.every_candidate import Condition, Part, consistent, placed, run_every_candidate
from nas.supernet.mac_counter import MacCounter
from nas.training.evaluate import counted_parameters

MOST_HOMES = 12  # places of a shared parameter; n places take up to 2^n terms


def parameters(model: nn.Module) -> Cost:
    """The cost in trainable parameters, as `nas.training.evaluate.count_parameters` counts them in a frozen network.

    A parameter that several candidates share counts once, no matter how many of the candidates are drawn.
    """
    counted = set(counted_parameters(model))
    homes: dict[nn.Parameter, set[Condition]] = defaultdict(set)
    for condition, module in placed(model):
        for parameter in module._parameters.values():
            if parameter is not None and parameter in counted:
                homes[parameter].add(condition)
    terms: dict[Condition, float] = defaultdict(float)
    for parameter, conditions in homes.items():
        for condition, sign in any_of(frozenset(conditions)):
            terms[condition] += sign * parameter.numel()
    return Cost(terms)


def any_of(conditions: frozenset[Condition]) -> Iterator[tuple[Condition, int]]:
    """Yields conditions with signs, by inclusion-exclusion. The signs of the conditions that hold add up to 1 if any of
    `conditions` holds, and to 0 otherwise."""
    # A condition that implies another one adds nothing.
    least = [condition for condition in conditions if not any(other < condition for other in conditions)]
    if len(least) > MOST_HOMES:
        raise SpaceError(
            f"weights are shared by {len(least)} candidates that are chosen independently, expected at most "
            f"{MOST_HOMES} for a regulariser of parameters",
            fix="use regulariser=macs, or give the same key to the choices that share weights",
        )
    for count in range(1, len(least) + 1):
        for some in itertools.combinations(least, count):
            if consistent(joint := frozenset().union(*some)):
                yield joint, (-1) ** (count + 1)


def macs(model: nn.Module, inputs: Inputs) -> Cost:
    """The cost in multiply-accumulates of a forward pass, as `nas.training.evaluate.count_macs` counts them in a frozen
    network.

    inputs: a batch of one example, on the model's device, which may be the meta device.
    """
    terms: dict[Condition, float] = defaultdict(float)
    attributed = 0
    with MacCounter() as counter:

        def observe(part: Part, run: Callable[[], Any]) -> Any:
            nonlocal attributed
            before, inner = counter.total, attributed
            output = run()
            # Without the counts of the choices inside, which have terms of their own.
            own = counter.total - before - (attributed - inner)
            attributed += own
            terms[part.condition] += own
            return output

        run_every_candidate(model, inputs, observe)
    return Cost(terms)
