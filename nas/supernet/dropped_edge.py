"""What stands in the place of an edge that a derivation dropped: zeros of the shape that the edge would have given."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.runtime.buffers import Buffers


@dataclass(frozen=True)
class OutputForm:
    """The form of an output, given the first tensor of the inputs.

    sizes: () for those of the input. Otherwise those of the output; the first of them follows the batch if
    `with_batch`. dtype: None for that of the input.
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
        """Of what the module returns. It runs once in evaluation mode, without gradients; its modes, its buffers and
        torch's random numbers are put back."""
        given = first_tensor((*inputs, *named.values()))
        modes, buffers = [(part, part.training) for part in module.modules()], Buffers(module)
        gpus = [given.device] if given.device.type == "cuda" else []
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=gpus):
                output = module.eval()(*copied(inputs), **{name: copied([value])[0] for name, value in named.items()})
        finally:
            for part, mode in modes:
                part.training = mode
            buffers.put_back()
        dtype = None if output.dtype == given.dtype else output.dtype
        if output.shape == given.shape and output.ndim:
            return cls(dtype=dtype)
        with_batch = bool(output.ndim and given.ndim and output.shape[0] == given.shape[0])
        return cls(tuple(output.shape), with_batch, dtype)


def copied(values: Iterable[Any]) -> list[Any]:
    """The module may write into its input, which others run on."""
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


def first_tensor(values: Iterable[Any]) -> Tensor:
    """Raises SpaceError if there is none."""
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, list | tuple) and (inside := [one for one in value if isinstance(one, Tensor)]):
            return inside[0]
    raise SpaceError(
        "an edge that a derivation drops was called without a tensor, so its zeros have no device",
        fix="give it a tensor, or use deriver=argmax, which drops nothing",
    )


class DroppedTensor(nn.Module):
    """Zeros of the form of what an edge would have returned.

    instead_of: a module with an output of that form, for which the first call runs it once; it is forgotten then.
    """

    def __init__(self, instead_of: nn.Module) -> None:
        super().__init__()
        self.form: OutputForm | None = None
        self.first: int | None = None  # which of the inputs tells the batch
        self._forget_or_keep(instead_of)

    def _forget_or_keep(self, module: nn.Module | None) -> None:
        self.__dict__["instead_of"] = module  # no child: it is no part of the network

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        if self.form is None:
            given = first_tensor((*inputs, *named.values()))
            module: nn.Module = self.__dict__["instead_of"]
            module.to(given.device, given.dtype if given.is_floating_point() else None)
            self.form = OutputForm.of(module, inputs, named)
            self._forget_or_keep(None)
            self.first = next((i for i, value in enumerate(inputs) if value is given), None)
        elif self.first is not None:  # asks no value for its type, so that the network can be traced
            given = inputs[self.first]
        else:
            given = first_tensor((*inputs, *named.values()))
        return self.form.zeros(given)


def settle(model: nn.Module, batch: Callable[[torch.device], tuple[Tensor, ...]]) -> None:
    """Let the dropped edges of a model find their form by one forward pass of a batch of two or more, so that nothing
    is left to find when the model is traced or copied. Modes, buffers and random numbers are put back.

    batch: makes the inputs on a device.
    """
    if any(isinstance(module, DroppedTensor) and module.form is None for module in model.modules()):
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        with contextlib.suppress(Exception):  # what fails here fails in the first real pass, where it is reported
            OutputForm.of(model, batch(device), {})
