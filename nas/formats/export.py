"""Exports a trained network: writes files, loads them in a fresh process, compares outputs, and then keeps them."""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.errors import NasError, OutputError, described
from nas.formats import subprocess_check
from nas.formats.format import TOLERANCE, Artefact, Format, Subject, UnavailableError
from nas.formats.model_card import model_card
from nas.storage import atomic, disk
from nas.storage.names import check_empty
from nas.storage.temporary_files import workplace
from nas.supernet.genotype import Genotype
from nas.untrusted import regular_file

FORMAT = "nas-export"
VERSION = 2
GENOTYPE, METADATA, CARD = "genotype.json", "metadata.json", "MODEL_CARD.md"


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    paths: of all files. left_out: format -> why the network cannot be exported in this format.
    """

    paths: list[Path]
    left_out: dict[str, str]


def export(
    subject: Subject,
    *,
    formats: Mapping[str, Format],
    genotype: Genotype,
    metadata: Mapping[str, Any],
    directory: Path,
    again: bool = False,
) -> Exported:
    """Writes the network to `directory` in the formats, with its genotype, metadata and a model card.

    metadata: the other contents of metadata.json, see `nas.formats.export_trained`.
    again: replace the files that the same run left there before it was killed.
    Raises OutputError, and writes nothing, if the directory is not empty, unless `again`; if a file, loaded in a fresh
    process, does not give the network's outputs; or if no format can hold the network. A network with random outputs
    cannot be compared: then only the other files are written.
    """
    if not again and directory.exists():
        check_empty(directory)
    if again:  # somebody else may have prepared the directory of a run that is resumed
        atomic.refuse_link(directory)
    try:
        with workplace(directory) as work:
            staging = work / "files"
            staging.mkdir()
            left_out = staged(subject, formats, genotype, metadata, staging)
            # The metadata come last: if they are there, all files are there.
            names = sorted((path.name for path in staging.iterdir()), key=lambda name: (name == METADATA, name))
            (directory / METADATA).unlink(missing_ok=True)
            for name in names:
                if name == METADATA:
                    atomic.flush_directory(directory)  # the others are there, even after a crash of the machine
                publish(staging / name, directory / name)
            atomic.flush_directory(directory)
    except OSError as error:
        if (refusal := disk.refusal(error)) is not None:
            raise disk.refused(refusal, directory, Path(tempfile.gettempdir())) from error
        raise OutputError(
            f"{error.filename or directory} cannot be written ({error.strerror or error})",
            fix="free some space, or set hydra.run.dir elsewhere",
        ) from error
    return Exported([directory / name for name in names], left_out)


def staged(
    subject: Subject, formats: Mapping[str, Format], genotype: Genotype, metadata: Mapping[str, Any], staging: Path
) -> dict[str, str]:
    """Writes all files of an export to an empty directory, and compares them. Returns format -> why it is left out."""
    (staging / GENOTYPE).write_text(genotype.to_json(), encoding="utf-8")
    artefacts, left_out = written(subject, formats, staging)
    complete: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        **metadata,
        "sha256": {path.name: digest(path) for path in sorted(staging.iterdir())},
        "left_out": left_out,
    }
    atomic.write_json(staging / METADATA, complete)  # nas.load needs it
    differences = compared(subject, artefacts, staging)
    complete["artefacts"] = {
        artefact.file: {
            "about": artefact.about,
            "needs": list(artefact.needs),
            "code": artefact.code,
            **({"warning": artefact.warning} if artefact.warning else {}),
            "largest_difference_to_network": differences[artefact.file],
            **artefact.facts,
        }
        for artefact in artefacts
    }
    atomic.write_json(staging / METADATA, complete)
    (staging / CARD).write_text(model_card(complete, genotype), encoding="utf-8")
    return left_out


def written(subject: Subject, formats: Mapping[str, Format], directory: Path) -> tuple[list[Artefact], dict[str, str]]:
    """Writes the formats. Returns the artefacts, and for each other format the reason; it leaves no file.

    Raises OutputError if no format could be written, unless the network is random: then nothing can be compared.
    """
    if is_random(subject):
        return [], dict.fromkeys(formats, "the network gives other outputs each time it runs")
    artefacts, left_out = [], {}
    for name, form in formats.items():
        before = set(directory.iterdir())
        try:
            artefacts.append(form.write(subject, directory))
        except NasError:
            raise
        except Exception as error:  # a user's own modules may raise any error; the other formats may still work
            if (refusal := disk.refusal(error)) is not None:  # the fault of the disk, not of the format
                raise disk.refused(refusal, directory, Path(tempfile.gettempdir())) from error
            foreseen = isinstance(error, UnavailableError)
            left_out[name] = str(error) if foreseen else f"making and trying it failed ({described(error)})"
            for path in set(directory.iterdir()) - before:
                path.unlink()
    if left_out and not artefacts:
        raise OutputError(
            f"the network cannot be exported as {' or '.join(formats)} ("
            f"{'; '.join(f'{name}: {reason}' for name, reason in left_out.items())})",
            fix="the checkpoint is complete; choose others, e.g. "
            f"formats=[{'program' if 'weights' in formats else 'weights'}]",
        )
    return artefacts, left_out


@torch.no_grad()
def compared(subject: Subject, artefacts: Sequence[Artefact], directory: Path) -> dict[str, float]:
    """Loads each artefact in a fresh process. Returns the largest difference of its outputs from its network's.

    Raises OutputError, naming the file, if the difference is larger than the artefact allows.
    """
    if not artefacts:
        return {}
    batches: list[dict[str, Tensor]] = [
        {name: tensor[:count] for name, tensor in zip(subject.variables, subject.examples, strict=True)}
        for count in (len(subject.examples[0]), 1)
    ]
    project = {artefact.file: artefact.code for artefact in artefacts if "gumbel-nas" in artefact.needs}
    alone = {artefact.file: artefact.code for artefact in artefacts if artefact.file not in project}
    outputs = subprocess_check.run(alone, project, batches=batches, directory=directory)
    differences = {}
    for artefact in artefacts:
        got = outputs[artefact.file]
        if isinstance(got, str):
            if (refusal := disk.refusal_in(got)) is not None:
                raise disk.refused(refusal, directory, Path(tempfile.gettempdir()))
            raise OutputError(
                f"{artefact.file} cannot be loaded in a fresh process ({' '.join(got.split()):.300})",
                fix="choose formats without it, and report this; nothing was written",
            )
        expected = [artefact.network(*batch.values()) for batch in batches]
        # Not the maximum of Python, which overlooks NaN.
        difference = float(torch.tensor([apart(*pair) for pair in zip(got, expected, strict=True)]).max())
        if not difference <= artefact.tolerance:
            raise OutputError(
                f"{artefact.file}, loaded in a fresh process, differs from the network by {difference:g}, expected at "
                f"most {artefact.tolerance:g}",
                fix="report this with the genotype; nothing was written",
            )
        differences[artefact.file] = difference
    return differences


def apart(got: Tensor, expected: Tensor) -> float:
    """Returns the largest difference: NaN where one alone is NaN, 0 where both are, or are the same infinity."""
    if got.shape != expected.shape:
        return torch.inf
    same = (got == expected) | (got.isnan() & expected.isnan())
    return float((got - expected).abs().masked_fill(same, 0).max())


@torch.no_grad()
def is_random(subject: Subject) -> bool:
    """Returns whether the network's outputs are random, e.g. because noise was derived."""
    first, second = (subject.network(*subject.examples) for _ in range(2))
    return not torch.allclose(first, second, rtol=0.0, atol=TOLERANCE, equal_nan=True)


def digest(path: Path) -> str:
    with regular_file.opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def publish(source: Path, target: Path) -> None:
    """Moves a file on the same file system. A copy would need the space twice."""
    with source.open("rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(source, target)
