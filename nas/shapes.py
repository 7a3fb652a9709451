"""Finds candidates that cannot stand in for each other, before a search is started with them."""

from typing import Any

import torch
from torch import Tensor, nn

from nas.choice import Choice, Gate, choices, gates
from nas.data.inputs import Inputs, each
from nas.errors import SpaceError


@torch.no_grad()
def check_shapes(model: nn.Module, inputs: Inputs) -> Any:
    """Run the model with every candidate of every choice, nested ones too, each time a choice is reached.

    inputs: a small batch. The model is left as it was: it runs in eval mode, so that no statistics move.
    Returns the model's output with every choice's first candidate. Raises SpaceError, naming the choice by its path,
    if a candidate's output is not one tensor, or not of the shape of the first one's.
    """
    path_of = {module: path for path, module in model.named_modules() if isinstance(module, Choice)}

    def compare(choice: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(choice, Choice)
        expected: torch.Size | None = None
        for name, candidate in zip(choice.names, choice.candidates, strict=True):
            output = candidate(*args, **kwargs)
            if not isinstance(output, Tensor):
                raise SpaceError(
                    f"candidate {name!r} of the choice at {path_of[choice]!r} returns a {type(output).__name__}, "
                    "expected one tensor",
                    fix="wrap it in a module that returns the tensor",
                )
            if expected is None:
                expected = output.shape
            elif output.shape != expected:
                raise SpaceError(
                    f"the candidates of the choice at {path_of[choice]!r} give outputs of different shapes: "
                    f"{choice.names[0]} {tuple(expected)}, {name} {tuple(output.shape)}",
                    fix="make them equal, by padding, striding or a 1x1 convolution",
                )

    found = choices(model)
    hooks = [choice.register_forward_pre_hook(compare, with_kwargs=True) for choice in path_of]
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with gates(found, dict.fromkeys(found, Gate(None, drawn=0))):
            return model(*each(inputs))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
