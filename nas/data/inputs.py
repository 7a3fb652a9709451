"""What a network is given: one tensor, or a tuple of them for a network of several inputs."""

from collections.abc import Callable

from torch import Tensor

Inputs = Tensor | tuple[Tensor, ...]


def each(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors, to be passed on as ``network(*each(inputs))``."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def mapped(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """`function` of every tensor, in the form that `inputs` has."""
    return tuple(map(function, inputs)) if isinstance(inputs, tuple) else function(inputs)
