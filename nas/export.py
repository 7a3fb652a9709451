"""Export of a trained network as files that run without this project."""

import contextlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas import atomic
from nas.data.inputs import Inputs, each, mapped
from nas.data.spec import DataSpec
from nas.errors import OutputError
from nas.genotype import Genotype
from nas.task import Task

TOLERANCE = 1e-4  # largest difference to the network that an exported program may show


def export(
    network: nn.Module,
    *,
    spec: DataSpec,
    genotype: Genotype,
    task: Task,
    inputs: Inputs,
    directory: Path,
    results: Mapping[str, Any],
) -> dict[str, Path]:
    """Write the network to `directory` and check it on real examples before its files get their names.

    inputs: a batch as the network gets it. Returns what was written:
    ``model.pt2``: a torch.export program with a dynamic batch, for torch.export.load without this project;
    ``genotype.json``; ``metadata.json``: how to make its input and read its output.
    Raises OutputError if torch.export cannot trace the network, or if the program, loaded back, does not give the
    network's outputs.
    """
    network = network.eval()
    # At least two, because torch.export takes a size of 1 for a constant.
    examples = each(mapped(lambda tensor: tensor.repeat_interleave(2, dim=0) if len(tensor) == 1 else tensor, inputs))
    examples = tuple(tensor.contiguous() for tensor in examples)
    batch = torch.export.Dim("batch", min=1)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where it draws the graph it got stuck in
            program = torch.export.export(network, examples, dynamic_shapes=tuple({0: batch} for _ in examples))
    except Exception as error:  # whatever the forward of a user's own model makes of being traced
        reason = " ".join(str(error).split())
        raise OutputError(
            f"torch.export cannot trace the network with a batch of any size ({type(error).__name__}: {reason:.300})",
            fix="let its forward use the sizes of its inputs, and no values of tensors; the checkpoint is complete",
        ) from error
    serialised = io.BytesIO()
    with warnings.catch_warnings():
        # torch.export's own serialiser warns of parts of itself; nothing that a user could act on.
        warnings.simplefilter("ignore")
        torch.export.save(program, serialised)
        serialised.seek(0)
        loaded = torch.export.load(serialised).module()
    with torch.no_grad():
        difference = max(
            float((loaded(*some) - network(*some)).abs().max())
            for some in (examples, tuple(tensor[:1] for tensor in examples))
        )
    if not difference <= TOLERANCE:
        raise OutputError(
            f"the exported program differs from the network by {difference:g}, expected at most {TOLERANCE:g}",
            fix="report this with the genotype; nothing was written",
        )
    paths = {name: directory / name for name in ("model.pt2", "genotype.json", "metadata.json")}
    atomic.write(paths["model.pt2"], lambda stream: stream.write(serialised.getvalue()))
    atomic.write_text(paths["genotype.json"], genotype.to_json())
    atomic.write_json(
        paths["metadata.json"],
        {
            "input": spec.description,
            "output": task.output,
            "data": spec.to_dict(),
            "largest_difference_to_network": difference,
            "results": dict(results),
        },
    )
    return paths
