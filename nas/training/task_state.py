"""The state of a task: what the modules in its loss and metric change in training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nas.training.held_objects import held
from nas.training.weighing import OnDevice


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
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        self._itself = not isinstance(task, nn.Module) and all(
            callable(getattr(task, name, None)) for name in ("state_dict", "load_state_dict")
        )
        self._modules = modules_of(task)
        self._before = {name: tensor.detach().cpu().clone() for name, tensor in self._tensors()}

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for place, module in self._modules.items():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                yield f"{place}.{name}".strip("."), tensor

    def state_dict(self) -> dict[str, Any]:
        if self._itself:
            state: dict[str, Any] = self._task.state_dict()
            return state
        now = {name: tensor.detach().cpu() for name, tensor in self._tensors()}  # sent to the first process
        return {name: tensor for name, tensor in now.items() if not self._is_as_before(name, tensor)}

    def _is_as_before(self, name: str, tensor: Tensor) -> bool:
        before = self._before.get(name)
        return before is not None and torch.equal(before.to(tensor.dtype), tensor)

    @torch.no_grad()
    def reset(self) -> None:
        """Restores the numbers of the construction, with which each stage of a run begins."""
        for name, tensor in self._tensors():
            if name in self._before and self._before[name].shape == tensor.shape:
                tensor.copy_(self._before[name])

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned. Ignores tensors that the task does not have, or of another shape: a run
        may be continued with another loss."""
        if self._itself:
            self._task.load_state_dict(state)
            return
        for name, tensor in self._tensors():
            if name in state and state[name].shape == tensor.shape:
                tensor.copy_(state[name])


@contextmanager
def buffers_kept(task: Any) -> Iterator[None]:
    """Restores the buffers of a task's modules at the end, e.g. running statistics of a loss that scores something."""
    modules = modules_of(task).values()
    before = [(module, name, buffer.clone()) for module in modules for name, buffer in module.named_buffers()]
    try:
        yield
    finally:
        for module, name, value in before:
            module.get_buffer(name).copy_(value)


def parameters_of(task: Any) -> list[str]:
    """Returns the names of the parameters in a task that require a gradient."""
    return [
        f"{place}.{name}".strip(".")
        for place, module in modules_of(task).items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
