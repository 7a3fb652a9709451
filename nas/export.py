"""Export of a trained network as files that run without this project."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas import atomic
from nas.data.bundle import DataSpec
from nas.errors import OutputError
from nas.genotype import Genotype

TOLERANCE = 1e-4  # largest difference to the network that an exported program may show


def export(
    network: nn.Module,
    *,
    spec: DataSpec,
    genotype: Genotype,
    images: Tensor,
    directory: Path,
    results: Mapping[str, Any],
) -> dict[str, Path]:
    """Write the network to `directory` and check it on real images before its files get their names.

    images: (N, C, H, W) float, normalised; N >= 2. Returns what was written:
    ``model.pt2``: a torch.export program with a dynamic batch, for torch.export.load without this project;
    ``genotype.json``; ``metadata.json``: how to make its input and read its output.
    Raises OutputError if the program, loaded back, does not give the network's outputs.
    """
    network = network.eval()
    images = images.contiguous()
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    serialised = io.BytesIO()
    with warnings.catch_warnings():
        # torch.export's own serialiser warns of parts of itself; nothing that a user could act on.
        warnings.simplefilter("ignore")
        torch.export.save(program, serialised)
        serialised.seek(0)
        loaded = torch.export.load(serialised).module()
    with torch.no_grad():
        difference = max(float((loaded(batch) - network(batch)).abs().max()) for batch in (images, images[:1]))
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
            "input": "float32 (batch, channels, height, width): pixels in [0, 1], less mean, divided by std",
            "output": "float32 (batch, classes): scores before the softmax, in the order of class_names",
            "data": spec.to_dict(),
            "largest_difference_to_network": difference,
            "results": dict(results),
        },
    )
    return paths
