"""Compares what two searches left, to the bit."""

from pathlib import Path
from typing import Any

import torch

from nas.storage import checkpoint_file


def exactly(value: Any) -> Any:
    """Equal for values of equal bits. The text of a large tensor is not: it leaves out most numbers."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: exactly(one) for key, one in value.items()}
    return [exactly(one) for one in value] if isinstance(value, list | tuple) else repr(value)


def of_search(directory: Path) -> tuple[Any, str]:
    """The state in a search's checkpoint, without times and paths, and its genotype."""
    state = checkpoint_file.load(directory / "search" / "checkpoint.pt", "search")
    kept = {name: exactly(state[name]) for name in state.keys() - {"config", "metrics", "seconds"}}
    return kept, (directory / "genotype.json").read_text()
