"""Which candidates a model runs where: a model with its choices open."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nas.data.inputs import Inputs, each
from nas.supernet.choice import Choice, choices

# What has to be drawn for a part of the network to be there: (choice key, candidate), one for each choice it is inside.
Condition = frozenset[tuple[str, str]]


def consistent(condition: Condition) -> bool:
    """Whether it asks for one candidate of each choice only."""
    return len({key for key, _ in condition}) == len(condition)


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
