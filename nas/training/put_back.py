"""Restores, bit for bit, what a trial changes: weights, buffers, modes, optimisers, scalers, attributes, generators."""

import copy
import functools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PutBack = Callable[[], object]
FIXED = {bool, int, float, str, tuple, type(None)}
# A module has a dozen empty dicts of hooks: looking into each takes longer than into all that may have changed.
HOOKS = {name for name in vars(nn.Module()) if "_hooks" in name}
DEEPEST = 3  # containers in containers that are put back


@contextmanager
def all_put_back(objects: Iterable[object], *, device: torch.device) -> Iterator[None]:
    """Restores the objects at the end, also after an error, and the global random generators.

    objects: modules with all their submodules, but without hooks; optimisers; and any other objects whose attributes
    are restored. The generators are those of Python, NumPy and torch, on the CPU and on the device.
    Weights are copied to the CPU, so that the memory used on a GPU is that of the trial itself.
    """
    seen: set[int] = set()
    actions = [action for one in objects for action in of_object(one, seen)]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  users draw from the global one
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for action in actions:
                action()
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def of_object(value: object, seen: set[int]) -> Iterator[PutBack]:
    """Yields the functions that restore the attributes of an object and of the modules below it."""
    if isinstance(value, Optimizer):
        yield of_optimizer(value)
    elif isinstance(value, nn.Module):
        for module in value.modules():
            entries = dict(vars(module))
            yield functools.partial(refill, vars(module), entries)
            yield functools.partial(refill, module._modules, dict(module._modules))
            for name, one in entries.items():
                if type(one) not in FIXED and name not in HOOKS and name != "_modules":
                    yield from of_value(one, seen, DEEPEST)
    elif value is not None and hasattr(value, "__dict__"):
        yield from of_value(vars(value), seen, DEEPEST)


def of_value(value: Any, seen: set[int], depth: int) -> Iterator[PutBack]:
    """Yields the functions that restore the contents of a value that can change in place."""
    if depth < 0 or type(value) in FIXED or id(value) in seen:
        return
    if isinstance(value, Tensor):
        seen.add(id(value))
        yield of_tensor(value)
    elif isinstance(value, torch.Generator):
        state = value.get_state()
        yield lambda: value.set_state(state)
    elif isinstance(value, random.Random):
        words = value.getstate()
        yield lambda: value.setstate(words)
    elif isinstance(value, np.random.Generator):
        bits = copy.deepcopy(value.bit_generator.state)
        yield lambda: setattr(value.bit_generator, "state", bits)
    elif isinstance(value, dict):
        seen.add(id(value))
        entries = dict(value)
        yield functools.partial(refill, value, entries)
        for one in entries.values():
            yield from of_value(one, seen, depth - 1)
    elif isinstance(value, list):
        seen.add(id(value))
        items = list(value)
        yield lambda: value.__setitem__(slice(None), items)
        for one in items:
            yield from of_value(one, seen, depth - 1)


def refill(value: dict[Any, Any], entries: dict[Any, Any]) -> None:
    value.clear()
    value.update(entries)


def of_tensor(tensor: Tensor) -> PutBack:
    """Returns a function that restores a tensor's numbers, its gradient and its requires_grad."""
    if tensor.is_inference() or tensor.device.type == "meta" or not tensor.is_leaf:
        return lambda: None
    numbers = tensor.detach().to("cpu", copy=True)
    gradient, learns = tensor.grad, tensor.requires_grad

    def put_back() -> None:
        tensor.data.copy_(numbers)
        tensor.requires_grad_(learns)
        tensor.grad = gradient

    return put_back


def of_optimizer(optimizer: Optimizer) -> PutBack:
    """Returns a function that restores an optimiser's state, the settings of its groups, and its attributes."""
    state = {weight: copy.deepcopy(held) for weight, held in optimizer.state.items()}
    groups = [
        {name: value if name == "params" else copy.deepcopy(value) for name, value in group.items()}
        for group in optimizer.param_groups
    ]
    attributes = {name: value for name, value in vars(optimizer).items() if name not in ("state", "param_groups")}

    def put_back() -> None:
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(before)
        vars(optimizer).update(attributes)

    return put_back
