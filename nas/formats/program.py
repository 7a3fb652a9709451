"""Exports the network as a program of torch.export: graph and weights in one file, without the network's Python."""

import contextlib
import inspect
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import described
from nas.formats.format import Artefact, Subject, UnavailableError

WARNING = (
    "torch.export.load unpickles parts of a .pt2 file, and may run code that is in it: load only a file from somebody "
    "you trust. The weights in weights.safetensors are data, which can be loaded from anybody."
)


class Program:
    """``model.pt2``, for torch.export.load, AOTInductor and ExecuTorch. It takes batches of any size."""

    def write(self, subject: Subject, directory: Path) -> Artefact:
        file = "model.pt2"
        write_program(subject.network, subject.examples, directory / file)
        return Artefact(
            file=file,
            about="a torch.export program, for batches of any size",
            needs=("torch",),
            code=program_code(file, subject),
            network=subject.network,
            warning=WARNING,
        )


def program_code(file: str, subject: Subject) -> str:
    return f'import torch\n\nnetwork = torch.export.load("{file}").module()\n{subject.call}'


def write_program(network: nn.Module, examples: tuple[Tensor, ...], path: Path) -> None:
    program = exported(network, examples)
    try:
        program.module()  # as whoever loads it does
    except SyntaxError as error:
        raise UnavailableError(
            f"torch.export cannot load its own program ({described(error)}); rename a part of the network whose name "
            "is a keyword of Python, such as class"
        ) from error
    content = io.BytesIO()
    with warnings.catch_warnings():
        # torch.export's serialiser warns about its own code. A user can do nothing about that.
        warnings.simplefilter("ignore")
        torch.export.save(program, content)
    path.write_bytes(content.getvalue())  # not by torch, which aborts the process when the disk is full


def exported(
    network: nn.Module, examples: tuple[Tensor, ...], *, any_batch: bool = True
) -> torch.export.ExportedProgram:
    """Returns the exported program for a batch of any size, or for the shapes of the examples alone.

    examples: for any batch at least two, because torch.export takes a size of 1 for a constant. Raises
    UnavailableError.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes: tuple[Any, ...] = tuple({0: batch} for _ in examples)
    first = next(iter(inspect.signature(network.forward).parameters.values()))
    if first.kind is first.VAR_POSITIONAL:  # all inputs are one argument to torch.export
        shapes = (shapes,)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch prints the unfinished graph there
            return torch.export.export(network, examples, dynamic_shapes=shapes if any_batch else None)
    except Exception as error:  # a user's own forward may raise any error while it is traced
        raise UnavailableError(
            f"torch.export cannot trace the network with a batch of any size ({described(error)}); "
            "let its forward use the sizes of its inputs, and no values of tensors"
        ) from error
