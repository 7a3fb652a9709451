"""Saves and restores the buffers of a model, including the buffers that are not in its state dict."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nas.runtime import distributed


class Buffers:
    """A copy of the buffers of a module at construction."""

    def __init__(self, module: nn.Module) -> None:
        self._found = [(owner, dict(owner._buffers)) for owner in module.modules()]
        self._values = [(one, one.clone()) for _, held in self._found for one in held.values() if one is not None]

    def are_same(self) -> bool:
        """Whether the module still holds the same buffer objects. Their values may differ."""
        return all(
            owner._buffers.keys() == held.keys() and all(owner._buffers[name] is one for name, one in held.items())
            for owner, held in self._found
        )

    @torch.no_grad()
    def put_back(self) -> None:
        """Restores the values. Also restores rebound buffer objects, and removes buffers that have been made since."""
        for buffer, before in self._values:
            # Past autograd's count of changes: a pass that began before has saved these very values.
            buffer.data.copy_(before)
        for owner, held in self._found:
            if owner._buffers or held:
                owner._buffers.clear()
                owner._buffers.update(held)


def unsaved(model: nn.Module) -> dict[str, Tensor]:
    """name -> buffer, for the buffers that a state dict leaves out (``persistent=False``). Training may change them."""
    saved = model.state_dict()
    # Detached, as in a state dict: torch.compile leaves attributes on buffers that a checkpoint cannot hold.
    return {name: buffer.detach() for name, buffer in model.named_buffers() if name not in saved}


def of_processes(model: nn.Module) -> list[dict[str, Tensor]]:
    """The buffers of each process that are not the same in all, as each saw its share of the batches: name -> buffer.

    Several processes call it together. Returns an empty list where nothing differs, as in a single process.
    """
    if distributed.world() == 1:
        return []
    mine = {name: buffer.detach() for name, buffer in model.named_buffers()}
    digests = dict(zip(mine, distributed.digest_each([*mine.values(), torch.zeros(1)]).tolist(), strict=False))
    everywhere = distributed.of_all(digests)
    found = distributed.of_all(
        {name: one.cpu() for name, one in mine.items() if any(of.get(name) != digests[name] for of in everywhere)}
    )
    return found if any(found) else []


@torch.no_grad()
def restore_unsaved(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Writes the buffers that `unsaved` or `of_processes` returned into another model of the same structure.

    Copies into the model's tensor if shape and dtype agree, and otherwise registers a new buffer.
    Raises AttributeError for a name whose module does not exist.
    """
    for name, value in buffers.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        there = owner._buffers.get(leaf)
        if there is not None and there.shape == value.shape and there.dtype == value.dtype:
            there.copy_(value)
        else:
            # Training makes such a buffer on the device of the parameters.
            device = next((tensor.device for tensor in model.parameters()), value.device)
            owner.register_buffer(leaf, value.to(device), persistent=False)
