"""Scores and sizes of a network."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.data.bundle import DataSpec
from nas.data.loader import Loader


@dataclass(frozen=True)
class Score:
    """accuracy in [0, 1] and mean cross-entropy in nats, over `images` images."""

    accuracy: float
    loss: float
    images: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@torch.no_grad()
def score(network: nn.Module, loader: Loader) -> Score:
    """The network in eval mode on every image of the loader."""
    network.eval()
    correct: Tensor | float = 0.0
    loss: Tensor | float = 0.0
    images = 0
    for batch, labels in loader.epoch(0):
        scores = network(batch)
        correct += (scores.argmax(dim=1) == labels).sum()
        loss += F.cross_entropy(scores, labels, reduction="sum")
        images += len(labels)
    return Score(float(correct) / images, float(loss) / images, images)


def count_parameters(network: nn.Module) -> int:
    """Trainable parameters, without those of an auxiliary head, which no inference uses."""
    return sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and not name.startswith("auxiliary.")
    )


@torch.no_grad()
def count_macs(network: nn.Module, spec: DataSpec) -> int:
    """Multiply-accumulates of one image's forward pass in eval mode, convolutions and matrix products, as torch's own
    FLOP counter sees them (two operations each)."""
    network.eval()
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *spec.input_shape, device=device))
    return counter.get_total_flops() // 2
