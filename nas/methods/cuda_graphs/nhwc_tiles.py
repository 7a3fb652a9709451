"""How the Triton kernels for channels_last tensors divide their work.

A tensor (N, C, H, W) in channels_last is a matrix in memory: a row for each pixel, a column for each channel. A program
computes one tile of such a matrix. Shapes are constants of the compiler, because divisions by a variable cost as much
as a pooling window. So each shape of an image is compiled apart, for about a second.

This module and those of the kernels import Triton. Import them where they are used.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

# An H100 or H200 has 132 multiprocessors. About four programs for each hide the waiting times of memory.
PROGRAMS = 512
SMALLEST = 1024  # elements of a tile: eight for each of the 128 threads, or 16 bytes of bfloat16


@triton.jit
def matrix_tile(program, channels: tl.constexpr, tile_pixels: tl.constexpr, tile_channels: tl.constexpr):
    """Returns the numbers of the pixels and of the channels of a program's tile. The last of them may not exist.

    Programs that share pixels are neighbours, so that they find each other's memory sectors in the cache.
    """
    across: tl.constexpr = (channels + tile_channels - 1) // tile_channels
    pixel = (program // across) * tile_pixels + tl.arange(0, tile_pixels)
    channel = (program % across) * tile_channels + tl.arange(0, tile_channels)
    return pixel, channel


@triton.jit
def place_of(pixel, height: tl.constexpr, width: tl.constexpr):
    """Returns the image, the row and the column of a pixel."""
    line = pixel // width
    return line // height, line % height, pixel % width


def tile_for(pixels: int, channels: int, largest: int) -> tuple[int, int]:
    """Returns how many pixels and channels a tile has.

    largest: elements of the largest tile, a power of two. A larger tile shares more work between its elements. Small
    tensors get smaller tiles, so that all multiprocessors are busy.
    """
    wide = min((64, 32, 16), key=lambda width: -(-channels // width) * width)  # the least padding, then the widest
    elements = largest
    while elements > SMALLEST and pixels * channels < PROGRAMS * elements:
        elements //= 2
    return elements // wide, wide


def programs_for(pixels: int, channels: int, tile: tuple[int, int]) -> int:
    return -(-pixels // tile[0]) * -(-channels // tile[1])


def empty_nhwc(shape: tuple[int, int, int, int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def windows_along(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Returns how many windows fit along an axis of `size` pixels."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
