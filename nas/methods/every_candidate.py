"""Which candidates a model runs where, and what each of them adds to its size: a model with its choices open."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nas.data.inputs import Inputs, each
from nas.errors import SpaceError
from nas.methods.cost import Condition, Cost, consistent
from nas.supernet.choice import Choice, choices
from nas.supernet.mac_counter import MacCounter
from nas.training.evaluate import counted_parameters

MOST_HOMES = 12  # a parameter with n of them takes up to 2^n terms


@dataclass(frozen=True)
class Part:
    """The model itself, or a candidate at one of the places where it runs.

    condition: what has to be drawn for it to run. choice, key, name: None for the model itself. first: whether no
    other candidate ran before it at this place.
    """

    condition: Condition
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    choice: Choice | None = None
    key: str | None = None
    name: str | None = None
    first: bool = True


def keys_of(model: nn.Module) -> dict[Choice, str]:
    """choice -> its key."""
    return {choice: key for key, sharing in choices(model).items() for choice in sharing}


@torch.no_grad()
def run_every_candidate(model: nn.Module, inputs: Inputs, observe: Callable[[Part, Callable[[], Any]], Any]) -> Any:
    """Run the model with every candidate of every choice, nested ones too, each time a choice is reached.

    inputs: a small batch. observe: called with each part and a function that runs it; what it returns is the part's
    output. A choice hands on the output of its first candidate. Inside a candidate that was drawn by a key, other
    choices of that key are drawn alike. The model is left as it was: it runs in eval mode, so that no statistics move.
    """
    key_of = keys_of(model)
    condition: Condition = frozenset()

    def opened(choice: Choice, key: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal condition
            outside = condition
            outputs: list[Any] = []
            for name, candidate in zip(choice.names, choice.candidates, strict=True):
                condition = outside | {(key, name)}
                if consistent(condition):
                    part = Part(condition, candidate, args, kwargs, choice, key, name, first=not outputs)
                    outputs.append(observe(part, functools.partial(candidate, *args, **kwargs)))
            condition = outside
            return outputs[0]

        return forward

    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for choice, key in key_of.items():
            choice.forward = opened(choice, key)  # type: ignore[method-assign]
        return observe(Part(condition, model, each(inputs), {}), functools.partial(model, *each(inputs)))
    finally:
        for choice in key_of:
            choice.__dict__.pop("forward", None)
        for module, mode in training.items():
            module.training = mode


def placed(model: nn.Module) -> Iterator[tuple[Condition, nn.Module]]:
    """Every module of the model, with what has to be drawn for it to be there; once for each place that it has."""
    key_of = keys_of(model)
    seen: set[tuple[Condition, nn.Module]] = set()

    def inside(condition: Condition, module: nn.Module) -> Iterator[tuple[Condition, nn.Module]]:
        if (condition, module) in seen or not consistent(condition):
            return
        seen.add((condition, module))
        yield condition, module
        if isinstance(module, Choice):
            for name, candidate in zip(module.names, module.candidates, strict=True):
                yield from inside(condition | {(key_of[module], name)}, candidate)
        else:
            for child in module._modules.values():
                if child is not None:
                    yield from inside(condition, child)

    return inside(frozenset(), model)


def parameters(model: nn.Module) -> Cost:
    """Trainable parameters, as `nas.training.evaluate.count_parameters` counts those of a frozen network: a parameter
    that several candidates share counts once, however many of them are drawn."""
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
    """Conditions with signs whose sum is 1 where any of `conditions` holds and 0 elsewhere: inclusion-exclusion."""
    # One that implies another adds nothing to it.
    least = [condition for condition in conditions if not any(other < condition for other in conditions)]
    if len(least) > MOST_HOMES:
        raise SpaceError(
            f"weights are shared by {len(least)} candidates that are chosen independently, expected at most "
            f"{MOST_HOMES} where expected parameters are wanted",
            fix="use regulariser=macs, or let the choices that share weights share a key",
        )
    for count in range(1, len(least) + 1):
        for some in itertools.combinations(least, count):
            if consistent(joint := frozenset().union(*some)):
                yield joint, (-1) ** (count + 1)


def macs(model: nn.Module, inputs: Inputs) -> Cost:
    """Multiply-accumulates of a forward pass, as `nas.training.evaluate.count_macs` counts those of a frozen network.

    inputs: a batch of one example; on the meta device for a model that is there.
    """
    terms: dict[Condition, float] = defaultdict(float)
    attributed = 0
    with MacCounter() as counter:

        def observe(part: Part, run: Callable[[], Any]) -> Any:
            nonlocal attributed
            before, inner = counter.total, attributed
            output = run()
            # Less what the choices inside have counted as theirs.
            own = counter.total - before - (attributed - inner)
            attributed += own
            terms[part.condition] += own
            return output

        run_every_candidate(model, inputs, observe)
    return Cost(terms)
