"""Searchers of made-up parts, without a search around them."""

import torch

from nas.methods.state import SearchState
from nas.runtime.precision import Precision
from nas.training.task import Classification

STATE = ("supernet", "arch", "weight_optim", "arch_optim", "generator", "sampler", "scaler", "guard")


def build_searcher(kind, *, supernet, arch, **parts):
    """kind: the class. parts: of the state of a search, and the arguments of the class."""
    precision = parts.get("precision") or Precision()
    parts = {
        "supernet": supernet,
        "arch": arch,
        "task": Classification(),
        "weight_optim": torch.optim.SGD(supernet.parameters(), lr=0.1),
        "arch_optim": torch.optim.SGD(arch.parameters(), lr=1.0),
        "generator": torch.Generator().manual_seed(2),
        "scaler": precision.scaler(),
    } | parts
    held = {name: parts.pop(name) for name in STATE if name in parts}
    return kind(SearchState(**held, metric="accuracy"), **parts)
