"""Replaces an edge that a derivation dropped: by 0, or by zeros of the shape that the edge would have returned."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.runtime.modes import evaluating
from nas.runtime.runtime import device_of


@dataclass(frozen=True)
class OutputForm:
    """The shape and dtype of an output, in terms of the first tensor of the inputs.

    sizes: the sizes of the output, or () if they equal the sizes of the input. with_batch: whether the first size
    follows the batch size of the input. dtype: the dtype of the output, or None if it equals the input's dtype.
    """

    sizes: tuple[int, ...] = ()
    with_batch: bool = False
    dtype: torch.dtype | None = None

    def zeros(self, given: Tensor) -> Tensor:
        if not self.sizes:
            return torch.zeros_like(given, dtype=self.dtype)
        sizes = (given.shape[0], *self.sizes[1:]) if self.with_batch else self.sizes
        return given.new_zeros(sizes, dtype=self.dtype)

    @classmethod
    def of(cls, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> "OutputForm":
        """The form of the module's output, from one run in evaluation mode without gradients.

        Restores the modes, the buffers and torch's random state.
        """
        given = first_tensor((*inputs, *named.values()))
        gpus = [given.device] if given.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=gpus), evaluating(module):
            output = module(*copied(inputs), **{name: copied([value])[0] for name, value in named.items()})
        dtype = None if output.dtype == given.dtype else output.dtype
        if output.shape == given.shape and output.ndim:
            return cls(dtype=dtype)
        with_batch = bool(output.ndim and given.ndim and output.shape[0] == given.shape[0])
        return cls(tuple(output.shape), with_batch, dtype)


def copied(values: Iterable[Any]) -> list[Any]:
    """Clones the tensors, because a module may write into its input, which other modules read."""
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


def first_tensor(values: Iterable[Any]) -> Tensor:
    """Returns the first tensor among the values and in lists or tuples of them. Raises SpaceError if none exists."""
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, list | tuple) and (inside := [one for one in value if isinstance(one, Tensor)]):
            return inside[0]
    raise SpaceError(
        "an edge that a derivation drops was called without a tensor, so its zeros have no device",
        fix="give it a tensor, or use deriver=argmax, which drops nothing",
    )


class Dropped(nn.Module):
    """An edge that derivation dropped from a sum: 0, the neutral element of the sum it takes part in."""

    def forward(self, *inputs: Any, **named: Any) -> int:
        return 0


class DroppedTensor(nn.Module):
    """Returns zeros of the form that an edge would have returned.

    instead_of: a module whose output has this form. The first call runs the module once and then drops it.
    """

    def __init__(self, instead_of: nn.Module) -> None:
        super().__init__()
        self.form: OutputForm | None = None
        self.first: int | None = None  # index of the input that gives the batch size
        self._forget_or_keep(instead_of)

    def _forget_or_keep(self, module: nn.Module | None) -> None:
        self.__dict__["instead_of"] = module  # not a child module, as it is no part of the network

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        if self.form is None:
            given = first_tensor((*inputs, *named.values()))
            module: nn.Module = self.__dict__["instead_of"]
            module.to(given.device, given.dtype if given.is_floating_point() else None)
            self.form = OutputForm.of(module, inputs, named)
            self._forget_or_keep(None)
            self.first = next((i for i, value in enumerate(inputs) if value is given), None)
        elif self.first is not None:  # without isinstance checks on the inputs, so that the network can be traced
            given = inputs[self.first]
        else:
            given = first_tensor((*inputs, *named.values()))
        return self.form.zeros(given)


def settle(model: nn.Module, batch: Callable[[torch.device], tuple[Tensor, ...]]) -> None:
    """Runs one forward pass, in which every dropped edge of the model records its output form.

    So tracing and copying need no first call. Restores modes, buffers and the random state.

    batch: returns the inputs on a device, with a batch size of at least 2.
    """
    if any(isinstance(module, DroppedTensor) and module.form is None for module in model.modules()):
        with contextlib.suppress(Exception):  # an error recurs in the first real pass, which reports it
            OutputForm.of(model, batch(device_of(model)), {})
