"""Reads the weights of a network from a file, and loads them into the network."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import CheckpointError, described
from nas.storage import checkpoint_file
from nas.untrusted import pickles, regular_file

# Under what a training script keeps the state dict in its checkpoint. The first is that of this project.
HELD_AS = ("network", "state_dict", "model", "model_state_dict")
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
FIX = "give a state dict as torch.save(model.state_dict(), path) writes it, or a file of safetensors"
NAMED, LETTERS = 3, 60  # entries that an error names, and letters of each
PICKLES = 5  # of an old file, before its numbers: of its kind, its version, the machine, the state, and what follows


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Loads the weights into the network, in place.

    path: of a file in the format of safetensors, or of a state dict that torch.save wrote, also inside a checkpoint
    under one of `HELD_AS`. Nothing in the file is run. Raises CheckpointError, naming entries, if they do not fit.
    """
    state, own = dict(read_state(path)), network.state_dict()
    for name in [name for name in own if name not in state]:  # safetensors writes tied weights once
        if (
            twin := next((other for other in state if other in own and is_same(own[other], own[name])), None)
        ) is not None:
            state[name] = state[twin]
    missing, unknown = [name for name in own if name not in state], [name for name in state if name not in own]
    if missing or unknown:
        parts = [f"lacks {listed(missing)}"] * bool(missing) + [f"has also {listed(unknown)}"] * bool(unknown)
        wrapper = next((one for one in WRAPPERS if all(name.startswith(one) for name in state)), None)
        raise CheckpointError(
            f"the weights in {path} do not fit the {type(network).__name__}: the file {' and '.join(parts)}",
            fix="let space.factory build the network that was trained, or give the file of this network"
            if wrapper is None
            else f"save the network without its wrapper, as all names begin with {wrapper!r}",
        )
    for name, value in state.items():
        if not isinstance(own[name], Tensor) or not isinstance(value, Tensor):  # of get_extra_state
            continue
        if own[name].shape != value.shape:
            raise CheckpointError(
                f"the weights in {path} do not fit the {type(network).__name__}: {name} is {tuple(value.shape)}, "
                f"expected {tuple(own[name].shape)}",
                fix="let space.factory build the network that was trained, e.g. with as many classes",
            )
    try:
        network.load_state_dict(state)
    except Exception as error:  # also those of the network's own set_extra_state
        raise CheckpointError(
            f"the weights in {path} do not fit the {type(network).__name__} ({described(error)})",
            fix="give the weights of this network",
        ) from error


def is_same(one: Any, other: Any) -> bool:
    """Whether two entries of a state dict are one tensor."""
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return both and one.shape == other.shape and one.stride() == other.stride() and one.data_ptr() == other.data_ptr()


def listed(names: list[str]) -> str:
    return ", ".join(name[:LETTERS] for name in names[:NAMED]) + f" (and {len(names) - NAMED} more)" * (
        len(names) > NAMED
    )


def read_state(path: str | Path) -> Mapping[str, Any]:
    """Returns name -> tensor, on the CPU, or what a module's get_extra_state has added.

    Raises CheckpointError for a file that holds anything else.
    """
    path = Path(path).expanduser()
    try:
        content = regular_file.read(path)
        return state_in(unpacked(content, safe=path.suffix == ".safetensors"), path)
    except CheckpointError:
        raise
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise CheckpointError(f"no weights can be read at {path} ({reason})", fix=FIX) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values; nothing of it was run", fix=FIX
        ) from error
    except Exception as error:  # the unpickler raises errors of any type for garbage
        raise CheckpointError(f"{path} is damaged, or holds no weights ({described(error)})", fix=FIX) from error


def state_in(found: Any, path: Path) -> Mapping[str, Any]:
    """Returns the state dict in what a file holds. Raises CheckpointError if there is none."""
    for name in HELD_AS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    extra = "_extra_state"  # plain values that a module adds by get_extra_state
    if (
        not isinstance(found, dict)
        or not any(isinstance(one, Tensor) for one in found.values())
        or not all(isinstance(one, Tensor) or str(name).endswith(extra) for name, one in found.items())
    ):
        holds = f", but {listed([f'{name!s:.40}' for name in found])}" if isinstance(found, dict) and found else ""
        raise CheckpointError(f"{path} holds no state dict{holds}", fix=FIX)
    return {str(name): tensor for name, tensor in found.items()}


def unpacked(content: bytes, *, safe: bool) -> Any:
    if safe:
        from safetensors.torch import load

        return load(content)
    if content.startswith(b"PK\x03\x04"):
        checkpoint_file.check_archive(content, names=pickles.NAMES_OF_OTHERS)
    else:  # as torch wrote files before its release 1.6
        stream = io.BytesIO(content)
        for _ in range(PICKLES):
            pickles.check_next(stream, values=checkpoint_file.VALUES, names=pickles.NAMES_OF_OTHERS)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
