"""Augmentation policies: torchvision's operations on images, drawn for each image separately.

torchvision draws one operation per call, so one call on a batch would treat all its images alike. One call per image
takes about 0.1 ms on a CPU. On a GPU, each geometric operation also waits for a small transfer.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from nas.data.global_random import drawing_from
from nas.errors import ConfigError

# (images (N, C, H, W) uint8, generator on the CPU) -> the same shape and type
Policy = Callable[[Tensor, Generator], Tensor]

STRENGTHS = 31  # steps of torchvision's scale, from no effect to the strongest


class TrivialAugment:
    """Applies one operation of random strength to each image. Source: Mueller & Hutter 2021, the wide space."""

    def __init__(self) -> None:
        from torchvision.transforms import v2  # takes seconds: imported only when used

        self._transform = v2.TrivialAugmentWide(num_magnitude_bins=STRENGTHS)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return each_alone(self._transform, images, generator)


class RandAugment:
    """Applies `operations` random operations to each image, one after the other, all of strength `magnitude`, 0 to 30.

    Raises ConfigError if `operations` is below 1 or `magnitude` is out of range. Source: Cubuk et al. 2020.
    """

    def __init__(self, *, operations: int = 2, magnitude: int = 9) -> None:
        if operations < 1:
            raise ConfigError(
                f"operations of a policy must be at least 1, got {operations}", fix="set retrain.policy.operations=2"
            )
        if not 0 <= magnitude < STRENGTHS:
            raise ConfigError(
                f"magnitude of a policy must be from 0 to {STRENGTHS - 1}, got {magnitude}",
                fix="set retrain.policy.magnitude=9",
            )
        from torchvision.transforms import v2

        self._transform = v2.RandAugment(num_ops=operations, magnitude=magnitude, num_magnitude_bins=STRENGTHS)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return each_alone(self._transform, images, generator)


def each_alone(transform: Callable[[Tensor], Tensor], images: Tensor, generator: Generator) -> Tensor:
    """Returns `transform` of every image, (C, H, W), applied to each image separately."""
    with drawing_from(generator):
        return torch.stack([transform(image) for image in images])
