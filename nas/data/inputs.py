"""The inputs of a network: one tensor, or a tuple of tensors for a network with several inputs."""

from collections.abc import Callable

import torch
from torch import Tensor

Inputs = Tensor | tuple[Tensor, ...]
Batch = tuple[Inputs, Tensor]  # and the targets


def each(inputs: Inputs) -> tuple[Tensor, ...]:
    """Returns the tensors, to call ``network(*each(inputs))``."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def mapped(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Returns `function` of every tensor: one tensor or a tuple, as `inputs` is."""
    return tuple(map(function, inputs)) if isinstance(inputs, tuple) else function(inputs)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns e.g. ``float32``."""
    return str(dtype).removeprefix("torch.")


def form(tensor: Tensor) -> str:
    """Returns the type and the shape of a tensor as text, e.g. ``float32 (2, 3)``."""
    return f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)}"
