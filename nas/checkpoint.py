"""Checkpoints: written atomically, read without running anything that is in them."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas import atomic
from nas.errors import CheckpointError

FORMAT = "nas-checkpoint"
VERSION = 1


def save(path: Path, kind: str, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain Python values) as a checkpoint of a kind, ``search`` or ``retrain``."""
    atomic.write(path, lambda stream: torch.save({"format": FORMAT, "version": VERSION, "kind": kind, **state}, stream))


def load(path: str | Path, kind: str) -> dict[str, Any]:
    """The state that `save` wrote, on the CPU.

    Only tensors and plain values are unpickled (weights_only). Raises CheckpointError for a file that is missing,
    truncated, of another project, version or kind, or that carries code.
    """
    path = Path(path)
    fix = f"give a checkpoint.pt that the {kind} stage wrote"
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}", fix=fix)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of tensors and plain values, or carries code; nothing of it was run", fix=fix
        ) from error
    except Exception as error:  # a file from anywhere: the unpickler meets garbage in every way there is
        raise CheckpointError(f"{path} is damaged or not a checkpoint", fix=fix) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this project", fix=fix)
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {state.get('version')!r}, expected {VERSION}",
            fix="use the release of this project that wrote it",
        )
    if state.get("kind") != kind:
        raise CheckpointError(f"{path} is of the {state.get('kind')} stage, expected one of {kind}", fix=fix)
    return state


def restore(model: nn.Module, weights: dict[str, Any], *, source: str | Path) -> None:
    """Load weights into a model. Raises CheckpointError, naming `source`, if they do not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {source} do not fit its network ({str(error).splitlines()[-1].strip()})",
            fix="use the release of this project that wrote it",
        ) from error
