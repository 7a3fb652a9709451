"""Restores, bit for bit, what a trial changes: weights, buffers, modes, optimisers, scalers, attributes, generators."""

import copy
import functools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PutBack = Callable[[], object]
FIXED = {bool, int, float, str, tuple, type(None)}
# A module has a dozen empty dicts of hooks: looking into each takes longer than into all that may have changed.
# Compiled and recorded passes know by themselves what a trial has left behind.
SKIPPED = {name for name in vars(nn.Module()) if "_hooks" in name} | {"_modules", "_compiled_call_impl"}
CODE = (type, FunctionType, MethodType, ModuleType)
# Queues, threads and writers are not put back: other threads use them too.
NOT_LOOKED_INTO = {*sys.stdlib_module_names, "torch"}
DEEPEST = 6  # containers and objects in each other that are put back


@contextmanager
def all_put_back(objects: Iterable[object], *, device: torch.device) -> Iterator[None]:
    """Restores the objects at the end, also after an error, and the global random generators.

    objects: modules with all their submodules, but without hooks; optimisers; and any other objects, of which the
    attributes are restored, and the attributes of objects in them. The generators are those of Python, NumPy and torch,
    on the CPU and on the device.
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
    """Yields the functions that restore an object, whatever its class."""
    yield from of_value(value if isinstance(value, nn.Module | Optimizer) else getattr(value, "__dict__", None), seen)


def of_module(module: nn.Module, seen: set[int]) -> Iterator[PutBack]:
    """Yields the functions that restore the attributes of a module and of the modules below it."""
    for part in module.modules():
        if part is not module and id(part) in seen:
            continue
        seen.add(id(part))
        entries = dict(vars(part))
        yield functools.partial(refill, vars(part), entries)
        yield functools.partial(refill, part._modules, dict(part._modules))
        for name, one in entries.items():
            if type(one) not in FIXED and name not in SKIPPED:
                yield from of_value(one, seen)


def of_value(value: Any, seen: set[int], depth: int = DEEPEST) -> Iterator[PutBack]:
    """Yields the functions that restore the contents of a value that can change in place."""
    if depth < 0 or type(value) in FIXED or isinstance(value, CODE) or id(value) in seen:
        return
    seen.add(id(value))
    held: Iterable[Any] = ()
    if isinstance(value, Tensor):
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
    elif isinstance(value, np.ndarray):
        numbers = value.copy()
        yield lambda: np.copyto(value, numbers)
    elif isinstance(value, Optimizer):
        yield of_optimizer(value)
        held = [one for name, one in vars(value).items() if name not in ("state", "param_groups")]
    elif isinstance(value, nn.Module):
        yield from of_module(value, seen)
    elif isinstance(value, dict | set):
        entries = dict(value) if isinstance(value, dict) else set(value)
        yield functools.partial(refill, value, entries)
        held = entries.values() if isinstance(entries, dict) else ()
    elif isinstance(value, list | deque):
        held = items = list(value)
        yield functools.partial(refill, value, items)
    elif looked_into(value):
        held = [vars(value)]
    for one in held:
        yield from of_value(one, seen, depth - 1)


def looked_into(value: object) -> bool:
    """Whether the attributes of an object that is no container are put back."""
    package = type(value).__module__.partition(".")[0]
    return hasattr(value, "__dict__") and (package not in NOT_LOOKED_INTO or isinstance(value, SimpleNamespace))


def refill(value: Any, entries: Any) -> None:
    """Gives a dict, a set, a list or a deque the entries that it had."""
    value.clear()
    (value.extend if isinstance(value, list | deque) else value.update)(entries)


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
        {name: one if name == "params" else copy.deepcopy(one) for name, one in group.items()}
        for group in optimizer.param_groups
    ]
    attributes = dict(vars(optimizer))

    def put_back() -> None:
        refill(vars(optimizer), attributes)
        refill(optimizer.state, state)
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            refill(group, before)

    return put_back
