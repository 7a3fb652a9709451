"""Differentiable architecture search that trains one sampled network a step."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"


def load(path: str | Path, *, allow: Sequence[str] = (), device: str = "cpu") -> "nn.Module":
    """The trained network, in eval mode: ``nas.load("runs/my_run")``.

    path: the directory of a run or of an export, or a ``retrain/checkpoint.pt``.
    allow: packages of your own that the network was built from, as ``allow_targets`` of the commands.
    device: ``cpu``, ``cuda``, ..., or ``auto`` for a GPU where there is one.
    Nothing that is in the files is run. Raises CheckpointError for files that are damaged, of another project or
    version, or do not belong together; ConfigError if they name a package that is not allowed.
    """
    from nas.formats import load  # here, so that importing the package takes no time

    return load.load(path, allow=allow, device=device)
