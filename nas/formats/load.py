"""Loads a trained network in one line, from a run, a checkpoint or an export."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.spec import DataSpec
from nas.errors import CheckpointError, described
from nas.formats.export import FORMAT, GENOTYPE, METADATA, VERSION
from nas.formats.weights import FILE as WEIGHTS
from nas.runtime.rng import put_back
from nas.runtime.runtime import Runtime
from nas.settings.allowed_targets import Allowed
from nas.settings.arguments import list_of, named_as_arguments, path_of
from nas.settings.building import built
from nas.spaces.darts import auxiliary_heads
from nas.spaces.space import Space
from nas.storage import checkpoint_file
from nas.supernet.genotype import SIZE_LIMIT as GENOTYPE_LIMIT, Genotype
from nas.training.network_size import as_large_as
from nas.training.trained import Trained
from nas.untrusted import plain_data, regular_file

SIZE_LIMIT = 10_000_000  # bytes of the metadata; a thousand classes take about twenty thousand
FIX = "give the directory of a run or of an export, or a retrain/checkpoint.pt"


def load(
    path: str | Path, *, allow: Sequence[str | Callable[..., Any]] = (), device: str | torch.device = "cpu"
) -> nn.Module:
    """The trained network, in eval mode: ``nas.load("runs/my_run")``.

    path: the directory of a run or of an export, or a ``retrain/checkpoint.pt``.
    allow: your own code that the network may be built from: packages (``my_package``), full import paths, or the
    functions and classes themselves. It is ``allow_targets`` of the commands.
    device: ``cpu``, ``cuda``, ..., or ``auto`` for a GPU if there is one.
    No code in the files is run. Raises CheckpointError for files that are damaged, of another project or version, or do
    not belong together, and ConfigError if they name a package that is not allowed.
    """
    with named_as_arguments(), put_back():
        return loaded(path, allow=allow, device=device)


def loaded(path: str | Path, *, allow: Allowed, device: str | torch.device) -> nn.Module:
    """Does what `load` does, for commands: errors name their settings."""
    path, allow = path_of(path, "path"), list_of(allow, "allow")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", fix=FIX)
    if (path / METADATA).is_file():
        return from_export(path, allow=allow, device=device)
    if path.is_dir():
        path = path / "retrain" / "checkpoint.pt"
        if not path.is_file():
            raise CheckpointError(f"{path.parent.parent} holds no run with a retrained network, and no export", fix=FIX)
    state = checkpoint_file.load(path, "retrain")
    with checkpoint_file.taken_from(path):
        kept = state["config"]["runtime"]["memory_format"]
    runtime = Runtime(device=device, memory_format=kept)
    return Trained.from_state(state, source=path, allow=allow, runtime=runtime).network


def from_export(directory: Path, *, allow: Allowed, device: str | torch.device) -> nn.Module:
    """Loads a network from the genotype and the weights of an export. Its model.py is never run.

    Raises CheckpointError if these files are not those that the metadata were written for.
    """
    metadata = read_metadata(directory / METADATA)
    source = directory / METADATA
    with checkpoint_file.taken_from(source):
        # Each file is read once, so that the checked bytes are the loaded bytes.
        text, packed = (
            read_checked(directory / name, metadata["sha256"].get(name), limit=limit)
            for name, limit in ((GENOTYPE, GENOTYPE_LIMIT), (WEIGHTS, None))
        )
        weights = read_weights(packed, directory / WEIGHTS)
        made, spec = metadata["network"], DataSpec.from_dict(metadata["data"])
        space: Space = built(made["space"], "space", allow=allow, source=source)
        genotype = Genotype.from_json(text.decode(), source=str(directory / GENOTYPE))
        resized = space.resized(made["sizes"])
        with as_large_as(weights, source=source):
            network = resized.network(spec, genotype)
        runtime = Runtime(device=device, memory_format=made["memory_format"])
    checkpoint_file.restore(without_auxiliary(network), weights, source=directory / WEIGHTS)
    return runtime.place(network).eval()


def read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = plain_data.from_json(regular_file.read(path, limit=SIZE_LIMIT))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} is damaged, or does not belong to an export ({reason})", fix=FIX) from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not belong to an export of this project", fix=FIX)
    checkpoint_file.check_version(path, metadata.get("version"), VERSION)
    return metadata


def read_checked(path: Path, expected: str | None, *, limit: int | None) -> bytes:
    """Returns a file's content. Raises CheckpointError unless its SHA-256 is the expected one.

    Weights also fit other networks with the same shapes, so loading them would not show a change.
    """
    try:
        if expected is None or not path.exists():
            raise CheckpointError(
                f"the export in {path.parent} has no {path.name}",
                fix="export again, with formats=[weights] at least, or load the run's directory",
            )
        content = regular_file.read(path, limit=limit)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})", fix="export again") from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise CheckpointError(
            f"{path} is damaged, or is not the one that was exported (its SHA-256 is not that in {METADATA})",
            fix="export again, or copy all files of the export together",
        )
    return content


def read_weights(content: bytes, path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file in the format of safetensors. Raises CheckpointError if it has another format."""
    from safetensors import SafetensorError
    from safetensors.torch import load as unpacked

    try:
        return unpacked(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} holds no weights that can be read ({described(error)})", fix="export again"
        ) from error


def without_auxiliary(network: nn.Module) -> nn.Module:
    """Removes the head that only training uses from the network, in place, and returns the network."""
    for name in auxiliary_heads(network):
        setattr(network, name, None)
    return network
