"""Pooling over 3x3 windows with padding 1, for channels_last tensors. Sums are taken in float32.

Gradients are gathered: each input pixel asks the windows that contain it. So nothing is added in a random order.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nas.methods.cuda_graphs.nhwc_tiles import empty_nhwc, matrix_tile, place_of, programs_for, tile_for, windows_along

LARGEST_TILE = 2048


@triton.jit
def max_forward(
    x,
    y,
    index,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    stride: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    out_height: tl.constexpr = (height - 1) // stride + 1
    out_width: tl.constexpr = (width - 1) // stride + 1
    pixel, channel = matrix_tile(tl.program_id(0), channels, tile_pixels, tile_channels)
    image, row, column = place_of(pixel, out_height, out_width)
    used = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    top = row * stride - 1
    left = column * stride - 1
    start = x + (((image * height + top) * width + left) * channels)[:, None] + channel[None, :]
    # The place of the first pixel, where nothing is larger than minus infinity.
    first = tl.where(top < 0, 3, 0) + tl.where(left < 0, 1, 0)
    place = tl.zeros([tile_pixels, tile_channels], tl.int32) + first[:, None]
    best = tl.full([tile_pixels, tile_channels], float("-inf"), tl.float32)
    for i in tl.static_range(3):
        row_inside = (top + i >= 0) & (top + i < height)
        for j in tl.static_range(3):
            inside = row_inside & (left + j >= 0) & (left + j < width)
            value = tl.load(start + (i * width + j) * channels, mask=inside[:, None] & used, other=float("-inf"))
            value = value.to(tl.float32)
            better = (value > best) | (value != value)  # as in ATen, the last NaN wins
            best = tl.where(better, value, best)
            place = tl.where(better, i * 3 + j, place)
    target = pixel[:, None] * channels + channel[None, :]
    tl.store(y + target, best.to(y.dtype.element_ty), mask=used)
    tl.store(index + target, place.to(tl.int8), mask=used)


@triton.jit
def max_backward(
    gradient,
    index,
    found,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    stride: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    out_height: tl.constexpr = (height - 1) // stride + 1
    out_width: tl.constexpr = (width - 1) // stride + 1
    pixel, channel = matrix_tile(tl.program_id(0), channels, tile_pixels, tile_channels)
    image, row, column = place_of(pixel, height, width)
    used = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    # The last window that may contain the pixel. At stride 1 three contain it along an axis, at stride 2 one or two.
    last_row = (row + 1) // stride
    last_column = (column + 1) // stride
    start = (((image * out_height + last_row) * out_width + last_column) * channels)[:, None] + channel[None, :]
    total = tl.zeros([tile_pixels, tile_channels], tl.float32)
    for a in tl.static_range(4 - stride):
        window_row = last_row - a
        i = row + 1 - window_row * stride  # of the pixel in the window
        row_inside = (window_row >= 0) & (window_row < out_height) & (i < 3)
        for b in tl.static_range(4 - stride):
            window_column = last_column - b
            j = column + 1 - window_column * stride
            inside = row_inside & (window_column >= 0) & (window_column < out_width) & (j < 3)
            mask = inside[:, None] & used
            source = start - (a * out_width + b) * channels
            place = tl.load(index + source, mask=mask, other=-1).to(tl.int32)
            value = tl.load(gradient + source, mask=mask, other=0.0).to(tl.float32)
            total += tl.where(place == (i * 3 + j)[:, None], value, 0.0)
    tl.store(found + pixel[:, None] * channels + channel[None, :], total.to(found.dtype.element_ty), mask=used)


@triton.jit
def average_forward(
    x,
    y,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    stride: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    out_height: tl.constexpr = (height - 1) // stride + 1
    out_width: tl.constexpr = (width - 1) // stride + 1
    pixel, channel = matrix_tile(tl.program_id(0), channels, tile_pixels, tile_channels)
    image, row, column = place_of(pixel, out_height, out_width)
    used = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    top = row * stride - 1
    left = column * stride - 1
    start = x + (((image * height + top) * width + left) * channels)[:, None] + channel[None, :]
    total = tl.zeros([tile_pixels, tile_channels], tl.float32)
    for i in tl.static_range(3):
        row_inside = (top + i >= 0) & (top + i < height)
        for j in tl.static_range(3):
            inside = row_inside & (left + j >= 0) & (left + j < width)
            value = tl.load(start + (i * width + j) * channels, mask=inside[:, None] & used, other=0.0)
            total += value.to(tl.float32)
    total = total * (share_of(top, height) * share_of(left, width))[:, None]
    tl.store(y + pixel[:, None] * channels + channel[None, :], total.to(y.dtype.element_ty), mask=used)


@triton.jit
def average_backward(
    gradient,
    found,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    stride: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    out_height: tl.constexpr = (height - 1) // stride + 1
    out_width: tl.constexpr = (width - 1) // stride + 1
    pixel, channel = matrix_tile(tl.program_id(0), channels, tile_pixels, tile_channels)
    image, row, column = place_of(pixel, height, width)
    used = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    last_row = (row + 1) // stride  # see `max_backward`
    last_column = (column + 1) // stride
    start = (((image * out_height + last_row) * out_width + last_column) * channels)[:, None] + channel[None, :]
    total = tl.zeros([tile_pixels, tile_channels], tl.float32)
    for a in tl.static_range(4 - stride):
        window_row = last_row - a
        row_inside = (window_row >= 0) & (window_row < out_height) & (row + 1 - window_row * stride < 3)
        row_share = share_of(window_row * stride - 1, height)
        for b in tl.static_range(4 - stride):
            window_column = last_column - b
            inside = row_inside & (window_column >= 0) & (window_column < out_width)
            inside = inside & (column + 1 - window_column * stride < 3)
            share = row_share * share_of(window_column * stride - 1, width)
            source = gradient + start - (a * out_width + b) * channels
            value = tl.load(source, mask=inside[:, None] & used, other=0.0)
            total += value.to(tl.float32) * tl.where(inside, share, 0.0)[:, None]
    tl.store(found + pixel[:, None] * channels + channel[None, :], total.to(found.dtype.element_ty), mask=used)


@triton.jit
def share_of(first, size: tl.constexpr):
    """Returns one over the number of pixels in a window of three that begins at `first`, along an axis."""
    pixels = tl.minimum(first + 3, size) - tl.maximum(first, 0)
    return 1.0 / tl.maximum(pixels, 1).to(tl.float32)  # a window outside of the image has none


class MaxPool(torch.autograd.Function):
    """max_pool2d of x (N, C, H, W), channels_last, at stride 1 or 2. Equal to ATen's, also for NaN and for ties."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        y, pixels, tile = pooled(x, stride)
        index = torch.empty_like(y, dtype=torch.int8)
        n, channels, height, width = x.shape
        grid = (programs_for(pixels, channels, tile),)
        max_forward[grid](x, y, index, pixels, height, width, channels, stride, *tile)
        ctx.save_for_backward(index)
        ctx.shape, ctx.stride = (n, channels, height, width), stride
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        gradient, found, pixels, tile = unpooled(gradient, ctx.shape)
        _, channels, height, width = ctx.shape
        grid = (programs_for(pixels, channels, tile),)
        max_backward[grid](gradient, index, found, pixels, height, width, channels, ctx.stride, *tile)
        return found, None


class AveragePool(torch.autograd.Function):
    """avg_pool2d of x (N, C, H, W), channels_last, at stride 1 or 2. Leaves out the padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        y, pixels, tile = pooled(x, stride)
        n, channels, height, width = x.shape
        average_forward[(programs_for(pixels, channels, tile),)](x, y, pixels, height, width, channels, stride, *tile)
        ctx.shape, ctx.stride = (n, channels, height, width), stride
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient, found, pixels, tile = unpooled(gradient, ctx.shape)
        _, channels, height, width = ctx.shape
        grid = (programs_for(pixels, channels, tile),)
        average_backward[grid](gradient, found, pixels, height, width, channels, ctx.stride, *tile)
        return found, None


def pooled(x: Tensor, stride: int) -> tuple[Tensor, int, tuple[int, int]]:
    """Returns room for the output, the number of its pixels, and a tile of it."""
    n, channels, height, width = x.shape
    out_height, out_width = (windows_along(size, 3, stride, 1) for size in (height, width))
    pixels = n * out_height * out_width
    return empty_nhwc((n, channels, out_height, out_width), x), pixels, tile_for(pixels, channels, LARGEST_TILE)


def unpooled(gradient: Tensor, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, int, tuple[int, int]]:
    """Returns the output's gradient in channels_last, room for the input's, the number of its pixels, a tile of it."""
    n, channels, height, width = shape
    pixels = n * height * width
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    return gradient, empty_nhwc(shape, gradient), pixels, tile_for(pixels, channels, LARGEST_TILE)
