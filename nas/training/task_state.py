"""The state of a task: what the modules in its loss and metric change in training."""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nas.training.held_objects import Stateful, held
from nas.training.own_generators import OwnGenerators
from nas.training.weighing import OnDevice

OTHERS = " others"  # the key of the states of other objects than the task
AT_FIRST = " at first"  # after the name of a buffer whose shape has changed: what it was at construction


def modules_of(task: Any) -> dict[str, nn.Module]:
    """Returns place -> module for the modules that a task holds: in attributes, partials, methods and functions."""
    return {place.replace(".function", ""): part for place, part in parts_of(task) if isinstance(part, nn.Module)}


def changing(task: Any) -> list[object]:
    """Returns the objects in a task that change when it is used: modules, and what moves them to a device."""
    return [part for _, part in parts_of(task)]


def parts_of(task: Any) -> Iterator[tuple[str, nn.Module | OnDevice]]:
    """Yields (place, part) for the modules that a task holds, and for what moves them to a device."""
    return held(task, (nn.Module, OnDevice))


class TaskState:
    """The parameters and buffers of a task's modules, as far as they differ from what they were at construction.

    So a checkpoint holds the running statistics of a loss, but not its class weights. A task with `state_dict` and
    `load_state_dict` of its own says itself what is saved: numbers, texts, tensors, and lists and dicts of such.
    augment: another object that stages share; `reset` restores its random generators as well, and the objects in it
    that have `state_dict` and `load_state_dict` are saved too, see `hold`.
    """

    def __init__(self, task: Any, *, augment: Any = None) -> None:
        self._task = task
        self._itself = saves_itself(task)
        self._own_before = copy.deepcopy(task.state_dict()) if self._itself else {}
        self._generators = OwnGenerators({"task": task, "augment": augment})
        self._drawn = self._generators.state_dict()
        self._modules = modules_of(task)
        self.modules = tuple(self._modules.values())
        self._before = {name: on_cpu(getattr(part, leaf)) for name, part, leaf in self._held()}
        self._others: dict[str, Stateful] = {}
        self._others_before: dict[str, dict[str, Any]] = {}
        self.hold("augment", augment)

    def hold(self, name: str, value: Any) -> None:
        """Takes in what else has a state: the objects in `value`, without modules, which may be large and not learn."""
        found = {f"{name}.{place}".strip("."): one for place, one in held(value, (Stateful,)) if saves_itself(one)}
        self._others |= found
        self._others_before |= {place: copy.deepcopy(one.state_dict()) for place, one in found.items()}

    def _held(self) -> Iterator[tuple[str, nn.Module, str]]:
        """Yields (name, module, attribute) for every parameter and every buffer. Either may be None."""
        for place, module in self._modules.items():
            for path, part in module.named_modules():
                for leaf in (*part._parameters, *part._buffers):
                    yield ".".join(filter(None, (place, path, leaf))), part, leaf

    def state_dict(self) -> dict[str, Any]:
        others = {place: state for place, one in self._others.items() if (state := one.state_dict())}
        return self._of_task() | ({OTHERS: others} if others else {})

    def _of_task(self) -> dict[str, Any]:
        if self._itself:
            state: dict[str, Any] = self._task.state_dict()
            return state
        found: dict[str, Any] = {}
        for name, part, leaf in self._held():
            if (now := getattr(part, leaf)) is None or self._is_as_before(name, now):
                continue
            found[name] = now.detach().cpu()  # sent to the first process
            if shape(before := self._before.get(name)) != now.shape:
                found[name + AT_FIRST] = before
        return found

    def _is_as_before(self, name: str, tensor: Tensor) -> bool:
        before = self._before.get(name)
        return before is not None and torch.equal(before.to(tensor.device, tensor.dtype), tensor)

    def reset(self) -> None:
        """Restores the numbers and the random generators of the construction, with which each stage of a run begins."""
        if self._itself:
            self._task.load_state_dict(copy.deepcopy(self._own_before))
        for place, one in self._others.items():
            one.load_state_dict(copy.deepcopy(self._others_before[place]))
        self._generators.load_state_dict(self._drawn)
        for name, part, leaf in self._held():
            if name in self._before:
                put(part, leaf, self._before[name])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned. Ignores tensors that the task does not have, or that had another shape
        at the construction: a run may be continued with another loss."""
        for place, of_other in state.get(OTHERS, {}).items():
            if place in self._others:
                self._others[place].load_state_dict(of_other)
        state = {name: value for name, value in state.items() if name != OTHERS}
        if self._itself:
            self._task.load_state_dict(state)
            return
        for name, part, leaf in self._held():
            if name in state and shape(state.get(name + AT_FIRST, state[name])) == shape(getattr(part, leaf)):
                put(part, leaf, state[name])


def saves_itself(task: Any) -> bool:
    names = ("state_dict", "load_state_dict")
    return not isinstance(task, nn.Module) and all(callable(getattr(task, name, None)) for name in names)


def on_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().cpu().clone()


def shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


@torch.no_grad()
def put(module: nn.Module, name: str, value: Tensor | None) -> None:
    """Writes a value into a parameter or buffer. Replaces a buffer of another shape, as a loss may let one grow."""
    there = getattr(module, name)
    if value is not None and shape(there) == value.shape:
        there.copy_(value)
    elif name in module._buffers:
        setattr(module, name, None if value is None else value.clone() if there is None else value.to(there, copy=True))


@contextmanager
def buffers_kept(task: Any) -> Iterator[None]:
    """Restores the buffers of a task's modules at the end, e.g. running statistics of a loss that scores something, and
    what a task saves itself."""
    own = copy.deepcopy(task.state_dict()) if saves_itself(task) else None
    modules = [part for module in modules_of(task).values() for part in module.modules()]
    before = [
        (module, name, None if buffer is None else buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, name, value in before:
            put(module, name, value)
        if own is not None:
            task.load_state_dict(own)


def parameters_of(part: Any, *, but: Collection[Tensor] = ()) -> list[str]:
    """Returns the names of the parameters in a task, a sampler or a regulariser that require a gradient. but: those
    that are left out."""
    others = set(but)
    found = {name: one for name, one in getattr(part, "__dict__", {}).items() if isinstance(one, nn.Parameter)}
    for place, module in modules_of(part).items():
        found |= {f"{place}.{name}".strip("."): parameter for name, parameter in module.named_parameters()}
    return [name for name, parameter in found.items() if parameter.requires_grad and parameter not in others]
