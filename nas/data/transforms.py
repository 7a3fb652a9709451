"""Augmentation and normalisation of a whole batch at once, on the device of the images.

The random numbers are drawn on the CPU, a few per image, and applied on the device: one seed gives the same crops on a
CPU and on a GPU. Padding is black and added before normalisation. The hole of cutout is zero after normalisation. Both
follow the recipes of the NAS papers (Liu et al. 2019, sec. 3.1).
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from nas.data.policy import Policy
from nas.errors import ConfigError

PIXELS = 1024  # of the largest crop_padding and cutout


def random_crop(images: Tensor, *, padding: int, generator: Generator) -> Tensor:
    """Shifts every image by up to `padding` pixels in each direction: pads with black, then crops to the old size.

    images: (N, C, H, W) uint8; returns the same shape. generator: on the CPU.
    """
    if padding == 0:
        return images
    n, _, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, n), generator=generator).to(images.device, non_blocking=True)
    padded = F.pad(images, (padding,) * 4)
    # A view of all (2 padding + 1)^2 crops of every image. Indexing copies one crop per image.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(n, device=images.device), :, offsets[0], offsets[1]]


def random_flip(images: Tensor, *, generator: Generator) -> Tensor:
    """Mirrors every image left to right with probability 1/2. images: (N, C, H, W); returns the same shape."""
    flipped = torch.randint(2, (len(images), 1, 1, 1), generator=generator).to(images.device, non_blocking=True)
    return torch.where(flipped.bool(), images.flip(3), images)


def cutout(images: Tensor, *, size: int, generator: Generator) -> Tensor:
    """Sets a square of `size` pixels to zero. Its centre is anywhere in the image, so it may hang over the edge.

    images: (N, C, H, W) float, normalised; returns the same shape. Raises ConfigError if the square is larger than the
    image. Source: DeVries and Taylor 2017; identical to the DARTS code for an even size.
    """
    n, _, height, width = images.shape
    if size > min(height, width):
        raise ConfigError(
            f"cutout {size} is larger than the {height}x{width} images",
            fix=f"set cutout to at most {min(height, width)}, e.g. half of the image; 0 turns it off",
        )
    if size == 0:
        return images
    top = torch.randint(height, (n, 1), generator=generator) - size // 2
    left = torch.randint(width, (n, 1), generator=generator) - size // 2
    rows, columns = torch.arange(height), torch.arange(width)
    rows_hit = (rows >= top) & (rows < top + size)  # (N, H)
    columns_hit = (columns >= left) & (columns < left + size)  # (N, W)
    hole = rows_hit[:, None, :, None] & columns_hit[:, None, None, :]
    return images.masked_fill(hole.to(images.device, non_blocking=True), 0.0)


def normalise(images: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Normalises pixels to zero mean and unit deviation.

    images: (N, C, H, W) uint8. mean, std: (C,) float in [0, 1] units, on the device of the images. Returns (N, C, H, W)
    float32.
    """
    scale, shift = scale_and_shift(mean, std)
    return images.float().mul_(scale).sub_(shift)


@functools.lru_cache(maxsize=8)  # of the tensors themselves, not of their values
def scale_and_shift(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what `normalise` computes from mean and deviation, (C, 1, 1) each."""
    return (1 / (255 * std))[:, None, None], (mean / std)[:, None, None]


@dataclass(frozen=True)
class Augment:
    """Prepares a training batch, in this order: crop, flip, policy, normalise, cutout. By default it only normalises.

    crop_padding: pixels to shift by at most. flip: mirror left to right. policy: of nas.data.policy.
    cutout: side of the square hole, in pixels.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    policy: Policy | None = None

    def __post_init__(self) -> None:
        for field in ("crop_padding", "cutout"):
            if not 0 <= getattr(self, field) <= PIXELS:
                bound = ">= 0" if getattr(self, field) < 0 else f"at most {PIXELS}"
                raise ConfigError(
                    f"{field} must be {bound} pixels, got {getattr(self, field)}", fix=f"set {field}=0 to turn it off"
                )

    def __call__(self, images: Tensor, *, mean: Tensor, std: Tensor, generator: Generator) -> Tensor:
        """images: (N, C, H, W) uint8; mean, std: (C,). Returns (N, C, H, W) float32, normalised and augmented."""
        images = random_crop(images, padding=self.crop_padding, generator=generator)
        if self.flip:
            images = random_flip(images, generator=generator)
        if self.policy is not None:
            images = self.policy(images, generator)
        return cutout(normalise(images, mean=mean, std=std), size=self.cutout, generator=generator)
