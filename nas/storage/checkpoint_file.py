"""Checkpoint files: written atomically with a checksum, read without running anything in them."""

import hashlib
import io
import itertools
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import CheckpointError, ConfigError, described
from nas.storage import atomic
from nas.untrusted import pickles, plain_data, regular_file

FORMAT = "nas-checkpoint"
VERSION = 2
VALUES = 2_000_000  # at most in a state; the state of a supernet of 20,000 candidates has 400,000
SHOWN = 3  # damaged checkpoints that a message names
EXPANDED = 2**26  # bytes that tensors may be larger than what they hold, all together
DIGEST_LENGTH = 64  # of a SHA-256 in hexadecimal

# The types of plain values; not of classes that extend them, as numbers of NumPy do.
PLAIN = (type(None), bool, int, float, str, torch.Size, torch.dtype, torch.device)


def save(path: Path, kind: str, state: dict[str, Any], *, keep: int = 1) -> None:
    """Writes `state` (tensors and plain Python values) as a checkpoint of a kind, ``search`` or ``retrain``.

    keep: how many checkpoints are kept. The old file ``checkpoint.pt`` becomes ``checkpoint.1.pt``, and so on. A
    complete checkpoint is there at any moment. Raises ConfigError for what `load` would refuse.
    """
    check_plain(state)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, "kind": kind, **state}, buffer)
    content = sealed(buffer.getvalue())
    atomic.write(path, lambda stream: stream.write(content), before_rename=lambda: rotate(path, keep))


def check_plain(state: Any) -> None:
    """Raises ConfigError, naming the place, for a value that is neither a tensor nor plain, e.g. a number of NumPy: no
    checkpoint with it could be read."""
    waiting, met = [(state, "")], set()
    while waiting:
        node, place = waiting.pop()
        if type(node) in (dict, OrderedDict, list, tuple):
            if id(node) in met:  # a state may hold one list at many places
                continue
            met.add(id(node))
            inner = node.items() if isinstance(node, dict) else enumerate(node)
            waiting += [(one, f"{place}.{name}".lstrip(".")) for name, one in inner if type(one) not in PLAIN]
            if isinstance(node, dict):
                waiting += [(name, place) for name in node if type(name) not in PLAIN]
        elif not isinstance(node, Tensor) and type(node) not in PLAIN and not (type(node) is bytes and node):
            raise ConfigError(
                f"a checkpoint is to hold {place}, a {type(node).__name__}, expected tensors, numbers, texts, and "
                "lists, tuples and dicts of them",
                fix="let state_dict return such, e.g. float(x) of a number and torch.from_numpy(x) of NumPy's array",
            )


def older(path: Path, age: int) -> Path:
    """Returns the path of the checkpoint that was at `path` `age` saves ago."""
    return path if age == 0 else path.with_name(f"{path.stem}.{age}{path.suffix}")


def rotate(path: Path, keep: int) -> None:
    for age in reversed(range(keep - 1)):
        if older(path, age).exists():
            os.replace(older(path, age), older(path, age + 1))


def newest(path: Path, kind: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Returns the newest readable state that `save` wrote to `path`, or None, and the problems of the damaged ones.

    Raises CheckpointError if there are checkpoints and none can be read.
    """
    problems: list[str] = []
    for age in itertools.count():
        one = older(path, age)
        if not one.exists() and age > 0:  # after a crash the newest may be missing, and older ones be there
            break
        if one.exists():
            try:
                return load(one, kind), problems
            except CheckpointError as error:
                problems.append(error.problem)
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] * (len(problems) > SHOWN)
        raise CheckpointError("; ".join([*problems[:SHOWN], *more]), fix="start the run anew, in another directory")
    return None, []


def sealed(archive: bytes) -> bytes:
    """Returns a zip archive with a comment: the SHA-256 of all bytes before it. torch.load and unzip can still read it.

    torch does not compare the checksums in a zip file, so a flipped bit would load as another weight.
    """
    # The last two bytes of an archive without a comment are the comment's length.
    content = archive[:-2] + DIGEST_LENGTH.to_bytes(2, "little")
    return content + hashlib.sha256(content).hexdigest().encode()


def load(path: str | Path, kind: str) -> dict[str, Any]:
    """Returns the state that `save` wrote, on the CPU.

    Only tensors and plain values are unpickled (weights_only). Raises CheckpointError if the file is missing,
    truncated, of another project, version or kind, or if it carries code.
    """
    path = Path(path)
    fix = f"give a checkpoint.pt that the {kind} stage wrote"
    if path.is_dir():
        places = [one / "checkpoint.pt" for one in (path, path / kind, path.parent / kind)]
        fix = next((f"give {place}" for place in places if place.is_file()), fix)
        raise CheckpointError(f"{path} is a directory, expected a file", fix=fix)
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}", fix=fix)
    try:
        content = regular_file.read(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})", fix=fix) from error
    if hashlib.sha256(content[:-DIGEST_LENGTH]).hexdigest().encode() != content[-DIGEST_LENGTH:]:
        raise CheckpointError(f"{path} is damaged, or not a checkpoint of this project", fix=fix)
    try:
        check_archive(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        check_state(state)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of tensors and plain values, or carries code; nothing of it was run", fix=fix
        ) from error
    except Exception as error:  # a file from anywhere: for garbage the unpickler raises errors of any type
        raise CheckpointError(f"{path} is damaged, or not a checkpoint of this project", fix=fix) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is damaged, or not a checkpoint of this project", fix=fix)
    check_version(path, state.get("version"), VERSION)
    if state.get("kind") != kind:
        raise CheckpointError(f"{path} is of the {state.get('kind')!s:.20} stage, expected one of {kind}", fix=fix)
    return state


def check_version(path: Path, version: Any, expected: int) -> None:
    """Raises CheckpointError for another version. Says what to do with a file of release 0.1.0."""
    if type(version) is int and version == expected:
        return
    if type(version) is int and version == 1:
        raise CheckpointError(
            f"{path} was written by release 0.1.0, whose files contain import paths",
            fix="use it with release 0.1.0, or retrain the network of its genotype.json, which this release reads",
        )
    raise CheckpointError(
        f"{path} has version {version!s:.20}, expected {expected}",
        fix="use the release of this project that wrote it",
    )


def check_archive(archive: bytes, *, names: re.Pattern[str] = pickles.NAMES) -> None:
    """Raises ValueError for a zip archive of which more comes out than is in it, or which torch could read in another
    way than this does: torch writes none. Raises UnpicklingError for a pickle that holds what no state is made of.

    names: that a pickle may have, see `nas.untrusted.pickles`.
    """
    check_directory(archive)
    with zipfile.ZipFile(io.BytesIO(archive)) as records:
        infos = records.infolist()
        known_as = {record.orig_filename.lower() for record in infos}  # torch looks for them in any case of letters
        if sum(record.file_size for record in infos) > len(archive) or len(known_as) < len(infos):
            raise ValueError("compressed")
        if any(record.compress_type or record.filename != record.orig_filename for record in infos):
            raise ValueError("compressed, or with other names than its names")
        contents = [records.read(record) for record in infos if record.filename.lower().endswith(".pkl")]
    for content in contents:
        pickles.check(content, values=VALUES, names=names)


def check_directory(archive: bytes) -> None:
    """Raises ValueError unless the archive's directory lies where its end record says, before the record.

    zipfile looks for the directory before the record, torch at the place that the record says: two of them would be
    two archives.
    """
    end = archive.rfind(b"PK\x05\x06")
    comment = len(archive) - end - 22
    if end < 0 or comment not in (0, DIGEST_LENGTH) or archive[end + 20 : end + 22] != comment.to_bytes(2, "little"):
        raise ValueError("no end of a directory")
    size, start = struct.unpack("<LL", archive[end + 12 : end + 20])
    if end >= 76 and archive[end - 20 : end - 16] == b"PK\x06\x07":  # of many records, or of gigabytes
        (record,) = struct.unpack("<Q", archive[end - 12 : end - 4])
        end -= 76
        if record != end or archive[end : end + 4] != b"PK\x06\x06":
            raise ValueError("another end of a directory")
        size, start = struct.unpack("<QQ", archive[end + 40 : end + 56])
    if start + size != end:
        raise ValueError("another directory")


def check_state(state: Any) -> None:
    """Raises ValueError if walking through or copying a state would cost far more than its bytes in the file."""
    plain_data.check(
        state,
        leaves=(Tensor, nn.Parameter, bytes, torch.Size, torch.device, torch.dtype),
        tuples=True,
        values=VALUES,
    )
    copied = 0
    for tensor in tensors(state):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError("it has tensors of another kind")
        # A tensor may be one number that is expanded to any shape.
        copied += max(0, tensor.numel() * tensor.element_size() - tensor.untyped_storage().nbytes())
    if copied > EXPANDED:
        raise ValueError("it has tensors that are larger than what they hold")


def tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict | list | tuple):
        for child in node.values() if isinstance(node, dict) else node:
            yield from tensors(child)


@contextmanager
def taken_from(source: str | Path) -> Iterator[None]:
    """Raises CheckpointError, naming `source`, if a lookup inside fails: a value is missing or has another type.

    The file was then written by another program, or changed by somebody.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{source} is incomplete, or was changed ({described(error)})", fix="use the file as this project wrote it"
        ) from error


def restore(model: nn.Module, weights: dict[str, Any], *, source: str | Path) -> None:
    """Loads weights into a model, which gets their types. Raises CheckpointError, naming `source`, if they do not fit.

    A model gets its types from torch's default, which may have been another one when the weights were saved.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()) if isinstance(weights, dict) else ():
        saved = weights.get(name)
        if isinstance(saved, Tensor) and saved.is_floating_point() and tensor.is_floating_point():
            tensor.data = tensor.data.to(saved.dtype)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {source} do not fit its network ({str(error).splitlines()[-1].strip():.200})",
            fix="use the genotype it was trained with, and the release of this project that wrote it",
        ) from error
