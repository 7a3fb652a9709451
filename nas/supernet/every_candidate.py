"""Runs a model with every candidate of every choice, and lists the modules that each drawn candidate brings."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nas.data.inputs import Inputs, each
from nas.runtime.modes import evaluation_mode
from nas.supernet.choice import Choice, choices

# The draws under which a part of the network exists: one (choice key, candidate) for each choice around the part.
Condition = frozenset[tuple[str, str]]


def consistent(condition: Condition) -> bool:
    """Whether the condition names no more than one candidate for each choice."""
    return len({key for key, _ in condition}) == len(condition)


@dataclass(frozen=True)
class Part:
    """The model itself, or a candidate at one of the places where it runs.

    condition: the draws under which the part runs. choice, key, name: the choice, its key and the candidate's name;
    None for the model itself. first: whether the candidate is the first that runs at this place.
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
    """Runs the model; each choice that is reached, also a nested one, runs all of its candidates.

    inputs: a small batch. observe: called with each part and a function that runs the part. The value that `observe`
    returns is the part's output. A choice returns the output of its first candidate. Inside a candidate, other
    choices with the same key run the candidate of the same name only. The model runs in eval mode, so that its
    statistics do not change, and its modes are restored.
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

    try:
        for choice, key in key_of.items():
            choice.forward = opened(choice, key)  # type: ignore[method-assign]
        with evaluation_mode(model):
            return observe(Part(condition, model, each(inputs), {}), functools.partial(model, *each(inputs)))
    finally:
        for choice in key_of:
            choice.__dict__.pop("forward", None)


def placed(model: nn.Module) -> Iterator[tuple[Condition, nn.Module]]:
    """Yields every module of the model with the draws under which it exists, once for each such condition."""
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
