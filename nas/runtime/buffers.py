"""The buffers of a model, to be put back, and those that are no part of its state dict."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


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


def unsaved(model: nn.Module) -> dict[str, Tensor]:
    """By name, the buffers that a state dict leaves out (``persistent=False``): training may change these as well."""
    saved = model.state_dict()
    # Detached, as in a state dict: torch.compile leaves attributes on buffers, which a checkpoint cannot hold.
    return {name: buffer.detach() for name, buffer in model.named_buffers() if name not in saved}


@torch.no_grad()
def restore_unsaved(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """What `unsaved` found, into another model of the kind; into the same tensors where they have the same form.

    Raises AttributeError for a name whose module is not there.
    """
    for name, value in buffers.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        there = owner._buffers.get(leaf)
        if there is not None and there.shape == value.shape and there.dtype == value.dtype:
            there.copy_(value)
        else:
            # Where training made it, it is on the device of the others.
            device = next((tensor.device for tensor in model.parameters()), value.device)
            owner.register_buffer(leaf, value.to(device), persistent=False)
