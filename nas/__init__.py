"""Differentiable neural architecture search for PyTorch. Each step trains one sampled network."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import nn

__version__ = "0.1.0"

# Importing this package takes no time: torch alone takes a second.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "evaluate": "api",
        "export": "api",
        "retrain": "api",
        "search": "api",
        "insert": "adapt",
        "ArchParams": "supernet",
        "Choice": "supernet",
        "Genotype": "supernet",
        "freeze": "supernet",
        "gates": "supernet",
        "Dirichlet": "methods",
        "GDAS": "methods",
        "GumbelSoftmax": "methods",
        "ScoreFunction": "methods",
        "Softmax": "methods",
        "StraightThrough": "methods",
        "Uniform": "methods",
    },
    modules=("adapt", "data", "errors", "formats", "methods", "runtime", "spaces", "storage", "supernet", "training"),
)
__all__ += ["__version__", "load"]


def load(
    path: str | Path, *, allow: "Sequence[str | Callable[..., Any]]" = (), device: "str | torch.device" = "cpu"
) -> "nn.Module":
    """The trained network, in eval mode: ``nas.load("runs/my_run")``.

    path: the directory of a run or of an export, or a ``retrain/checkpoint.pt``.
    allow: your own code that the network may be built from: packages (``my_package``), full import paths, or the
    functions and classes themselves. It is ``allow_targets`` of the commands.
    device: ``cpu``, ``cuda``, ..., or ``auto`` for a GPU if there is one.
    No code in the files is run. Raises CheckpointError for files that are damaged, of another project or version, or do
    not belong together, and ConfigError if they name a package that is not allowed.
    """
    from nas.formats import load  # here, so that importing the package takes no time
    from nas.runtime.rng import put_back
    from nas.settings.arguments import named_as_arguments

    with named_as_arguments(), put_back():
        return load.load(path, allow=allow, device=device)
