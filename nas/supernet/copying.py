"""Copies modules, also those that hold results of their last forward pass."""

import copy
from typing import TypeVar

from torch import Tensor, nn

from nas.supernet.unregistered import held_plainly

Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module) -> Module:
    """Returns a copy of the module with its own weights.

    copy.deepcopy alone fails for a module that keeps a tensor with a history, like an attention map, or the weight of
    torch.nn.utils.weight_norm. The copy gets such a tensor without its history.
    """
    held = (tensor for _, _, tensor in held_plainly(module, Tensor) if not tensor.is_leaf)
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in held})
