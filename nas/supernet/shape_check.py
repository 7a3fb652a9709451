"""Finds candidates that cannot stand in for each other, before a search is started with them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.inputs import Inputs
from nas.errors import SpaceError
from nas.supernet.choice import Choice
from nas.supernet.every_candidate import Part, run_every_candidate


def check_shapes(model: nn.Module, inputs: Inputs) -> Any:
    """Run the model with every candidate of every choice, nested ones too, each time a choice is reached.

    inputs: a small batch. The model is left as it was: it runs in eval mode, so that no statistics move.
    Returns the model's output with every choice's first candidate. Raises SpaceError, naming the choice by its path,
    if a candidate's output is not one tensor, or not of the shape of the first one's.
    """
    path_of = {module: path for path, module in model.named_modules() if isinstance(module, Choice)}
    expected: dict[Choice, tuple[str, torch.Size]] = {}

    def compare(part: Part, run: Callable[[], Any]) -> Any:
        output, choice, name = run(), part.choice, part.name
        if choice is None or name is None:
            return output
        if not isinstance(output, Tensor):
            raise SpaceError(
                f"candidate {name!r} of the choice at {path_of[choice]!r} returns a {type(output).__name__}, "
                "expected one tensor",
                fix="wrap it in a module that returns the tensor",
            )
        if part.first:
            expected[choice] = name, output.shape
        first, shape = expected[choice]
        if output.shape != shape:
            raise SpaceError(
                f"the candidates of the choice at {path_of[choice]!r} give outputs of different shapes: "
                f"{first} {tuple(shape)}, {name} {tuple(output.shape)}",
                fix="make them equal, by padding, striding or a 1x1 convolution",
            )
        return output

    return run_every_candidate(model, inputs, compare)
