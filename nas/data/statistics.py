"""Mean and standard deviation of the pixels of each channel."""

from collections.abc import Iterable

import torch
from torch import Tensor


def channel_statistics(batches: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std per channel, in [0, 1] pixel units, of all images in `batches` (each (N, C, H, W) uint8).

    The values are exact: they come from a histogram of the 256 pixel values, without a float copy of the images. A
    constant channel gets std 1, not 0, so that normalising it gives zeros and not NaN.
    """
    histogram = torch.stack([_histogram(images) for images in batches]).sum(0)
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = histogram / histogram.sum(1, keepdim=True)  # (C, 256)
    mean = weights @ values
    std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt()
    constant = (histogram > 0).sum(1) == 1
    return tuple(mean.tolist()), tuple(std.masked_fill(constant, 1.0).tolist())


def _histogram(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (C, 256) float64 counts."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    # In chunks: bincount makes an int64 copy, eight times the size of the pixels.
    for chunk in torch.split(images, 4096):
        counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in torch.unbind(chunk, 1)])
    return counts
