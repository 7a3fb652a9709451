"""Exports the network in bfloat16: half the size, and faster on hardware that computes in bfloat16.

Not int8: torch.ao.quantization is deprecated, and torch.export cannot save its results. Its successor, torchao, is a
separate package.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from nas.formats.format import TOLERANCE, Artefact, Subject
from nas.formats.program import WARNING, program_code, write_program
from nas.supernet.copying import copied


class InBFloat16(nn.Module):
    """A copy of a network that computes in bfloat16. The types of inputs and outputs do not change."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copied(network).to(torch.bfloat16)

    def forward(self, *inputs: Tensor) -> Tensor:
        cast = (tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor for tensor in inputs)
        return self.network(*cast).float()


class BFloat16:
    """``model_bfloat16.pt2``: like ``model.pt2``, with its score on the test split in the metadata."""

    def write(self, subject: Subject, directory: Path) -> Artefact:
        file = "model_bfloat16.pt2"
        network = InBFloat16(subject.network).eval()
        write_program(network, subject.examples, directory / file)
        with torch.no_grad():
            difference = (network(*subject.examples) - subject.network(*subject.examples)).abs().max()
        return Artefact(
            file=file,
            about="a torch.export program that computes in bfloat16; its outputs are not those of the other files",
            needs=("torch",),
            code=program_code(file, subject),
            network=network,
            # The program may round in another order, e.g. without the fast path of a transformer layer.
            tolerance=max(TOLERANCE, 2 * float(difference)),
            warning=WARNING,
            facts={**subject.measure(network), "largest_difference_to_float32": float(difference)},
        )
