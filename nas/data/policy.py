"""Augmentation policies: torchvision's operations on images, drawn for every image by itself.

torchvision draws one operation a call, so a call on a batch would treat all its images alike. One call an image takes
about a tenth of a millisecond each on a CPU; on a GPU the geometric operations also wait for a small transfer each.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from nas.data.global_random import drawing_from
from nas.errors import ConfigError

# (images (N, C, H, W) uint8, generator on the CPU) -> the same shape and type
Policy = Callable[[Tensor, Generator], Tensor]

STRENGTHS = 31  # of torchvision's scale, from no effect to the strongest


class TrivialAugment:
    """One operation of a random strength an image. Source: Mueller & Hutter 2021, the wide space."""

    def __init__(self) -> None:
        from torchvision.transforms import v2  # seconds: only for those who use it

        self._transform = v2.TrivialAugmentWide(num_magnitude_bins=STRENGTHS)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return each_alone(self._transform, images, generator)


class RandAugment:
    """`operations` drawn for an image, one after the other, all of strength `magnitude` of 0 to 30.

    Raises ConfigError for values outside of that. Source: Cubuk et al. 2020.
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
    """`transform` of every image, (C, H, W), as if there were no other."""
    with drawing_from(generator):
        return torch.stack([transform(image) for image in images])
