"""The buffers of a model, to be put back."""

import torch
from torch import nn


class Buffers:
    """The buffers of a module as they are."""

    def __init__(self, module: nn.Module) -> None:
        self._found = [
            (owner, name, buffer, buffer.clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]

    def are_same(self) -> bool:
        """Whether they are the same tensors, whatever is in them."""
        return all(owner._buffers.get(name) is buffer for owner, name, buffer, _ in self._found)

    @torch.no_grad()
    def put_back(self) -> None:
        """Where they were, too: a module may have put a new tensor in the place of one."""
        for owner, name, buffer, before in self._found:
            owner._buffers[name] = buffer.copy_(before)
