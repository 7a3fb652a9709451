"""Checks, before a search starts, that all candidates of a choice return tensors of the same shape."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.inputs import Inputs
from nas.errors import SpaceError
from nas.supernet.choice import Choice
from nas.supernet.every_candidate import Part, run_every_candidate
from nas.supernet.returned_inputs import ReturnedInputs


def check_shapes(model: nn.Module, inputs: Inputs) -> Any:
    """Runs the model with every candidate of every choice, see `run_every_candidate`.

    inputs: a small batch. The model runs in eval mode, so that its statistics do not change.
    Returns the model's output with the first candidate of every choice. Raises SpaceError, naming the choice by its
    path, if a candidate does not return one tensor, or a tensor of another shape than the first candidate's; if it
    returns its input where the model writes into it later, or writes into its input where the model needs it again, see
    `nas.supernet.returned_inputs`.
    """
    returned = ReturnedInputs()
    path_of = {module: path for path, module in model.named_modules() if isinstance(module, Choice)}
    expected: dict[Choice, tuple[str, torch.Size]] = {}

    def compare(part: Part, run: Callable[[], Any]) -> Any:
        output, choice, name = returned.run(part, run), part.choice, part.name
        if choice is None or name is None:
            return output
        if not isinstance(output, Tensor):
            raise SpaceError(
                f"candidate {name!r} of the choice at {path_of[choice]!r} returns a {type(output).__name__}, "
                "expected one tensor",
                fix="wrap the candidate in a module that returns one tensor",
            )
        if part.first:
            expected[choice] = name, output.shape
        first, shape = expected[choice]
        if output.shape != shape:
            raise SpaceError(
                f"the candidates of the choice at {path_of[choice]!r} return outputs of different shapes: "
                f"{first} {tuple(shape)}, {name} {tuple(output.shape)}",
                fix="make the shapes equal, by padding, striding or a 1x1 convolution",
            )
        returned.note(part, output)
        return output

    output = run_every_candidate(model, inputs, compare)
    returned.refuse_overwritten(model, inputs)
    returned.refuse_writing(model, inputs)
    return output
