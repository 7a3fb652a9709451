"""A trained network in one line, from whatever a run left."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nas import checkpoint
from nas.config import build
from nas.data.spec import DataSpec
from nas.errors import CheckpointError
from nas.export import FORMAT, GENOTYPE, METADATA, VERSION, digest
from nas.formats.weights import FILE as WEIGHTS
from nas.genotype import Genotype
from nas.runtime import Runtime
from nas.spaces.darts import AuxiliaryHead
from nas.spaces.space import Space
from nas.stages.trained import Trained

SIZE_LIMIT = 10_000_000  # bytes of the metadata; a thousand classes take about twenty thousand
FIX = "give the directory of a run or of an export, or a retrain/checkpoint.pt"


def load(path: str | Path, *, allow: Sequence[str], device: str) -> nn.Module:
    """See `nas.load`."""
    path = Path(path).expanduser()
    if (path / METADATA).is_file():
        return from_export(path, allow=allow, device=device)
    if path.is_dir():
        path = path / "retrain" / "checkpoint.pt"
        if not path.is_file():
            raise CheckpointError(f"{path.parent.parent} holds no run with a retrained network, and no export", fix=FIX)
    state = checkpoint.load(path, "retrain")
    with checkpoint.taken_from(path):
        kept = state["config"]["runtime"]["memory_format"]
    runtime = Runtime(device=device, memory_format=kept)
    return Trained.from_state(state, source=path, allow=list(allow), runtime=runtime).network


def from_export(directory: Path, *, allow: Sequence[str], device: str) -> nn.Module:
    """From the genotype and the weights of an export; its model.py is never run.

    Raises CheckpointError if they are not what the metadata were written for.
    """
    from safetensors.torch import load_file

    metadata = read_metadata(directory / METADATA)
    with checkpoint.taken_from(directory / METADATA):
        for name in (GENOTYPE, WEIGHTS):
            check_digest(directory / name, metadata["sha256"].get(name))
        made, spec = metadata["network"], DataSpec.from_dict(metadata["data"])
        space: Space = build(made["space"], allow=list(allow))
        network = space.resized(made["sizes"]).network(spec, Genotype.load(directory / GENOTYPE))
        runtime = Runtime(device=device, memory_format=made["memory_format"])
    checkpoint.restore(without_auxiliary(network), load_file(directory / WEIGHTS), source=directory / WEIGHTS)
    return runtime.place(network).eval()


def read_metadata(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise ValueError(f"larger than {SIZE_LIMIT} bytes")
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, or not of an export ({error})", fix=FIX) from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not of an export of this project", fix=FIX)
    if type(metadata.get("version")) is not int or metadata["version"] != VERSION:
        raise CheckpointError(
            f"{path} has version {metadata.get('version')!r}, expected {VERSION}",
            fix="use the release of this project that wrote it",
        )
    return metadata


def check_digest(path: Path, expected: str | None) -> None:
    """Weights fit other networks of the same shapes as well, so that loading them would not show a change."""
    if expected is None or not path.is_file():
        raise CheckpointError(
            f"the export in {path.parent} has no {path.name}",
            fix="export again, with formats=[weights] at least, or load the run's directory",
        )
    if digest(path) != expected:
        raise CheckpointError(
            f"{path} is damaged, or is not the one that was exported (its SHA-256 is not that in {METADATA})",
            fix="export again, or copy all files of the export together",
        )


def without_auxiliary(network: nn.Module) -> nn.Module:
    """The network, in place, without the head that only training uses."""
    for name, child in network.named_children():
        if isinstance(child, AuxiliaryHead):
            setattr(network, name, None)
    return network
