"""Depthwise convolution of channels_last tensors. Sums are taken in float32, and always in the same order."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nas.methods.cuda_graphs.nhwc_tiles import empty_nhwc, matrix_tile, place_of, programs_for, tile_for, windows_along

LARGEST_TILE = 4096
LARGEST_STRIDED_TILE = 2048  # of `input_gradient`, which needs more registers
# Partial sums of a weight's gradient. Each of the kernel's rows has programs of its own, so this is three or five
# programs for each multiprocessor and kernel row.
PARTS = 256


@triton.jit
def convolve(
    x,
    weight,
    y,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    kernel: tl.constexpr,
    stride: tl.constexpr,
    padding: tl.constexpr,
    dilation: tl.constexpr,
    flipped: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """flipped: whether the kernel is taken from its end. padding: may be negative. weight: (kernel * kernel, C)."""
    out_height: tl.constexpr = (height + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    out_width: tl.constexpr = (width + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    pixel, channel = matrix_tile(tl.program_id(0), channels, tile_pixels, tile_channels)
    image, row, column = place_of(pixel, out_height, out_width)
    used = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    top = row * stride - padding
    left = column * stride - padding
    start = x + (((image * height + top) * width + left) * channels)[:, None] + channel[None, :]
    total = tl.zeros([tile_pixels, tile_channels], tl.float32)
    for i in tl.static_range(kernel):
        row_inside = (top + i * dilation >= 0) & (top + i * dilation < height)
        for j in tl.static_range(kernel):
            inside = row_inside & (left + j * dilation >= 0) & (left + j * dilation < width)
            shift = (i * width + j) * dilation * channels
            value = tl.load(start + shift, mask=inside[:, None] & used, other=0.0)
            tap = kernel * kernel - 1 - i * kernel - j if flipped else i * kernel + j
            factor = tl.load(weight + tap * channels + channel, mask=channel < channels, other=0.0)
            total += value.to(tl.float32) * factor.to(tl.float32)[None, :]
    tl.store(y + pixel[:, None] * channels + channel[None, :], total.to(y.dtype.element_ty), mask=used)


@triton.jit
def input_gradient(
    gradient,
    weight,
    found,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    kernel: tl.constexpr,
    stride: tl.constexpr,
    padding: tl.constexpr,
    dilation: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """The gradient of the input at any stride. At stride 1, `convolve` computes it faster."""
    out_height: tl.constexpr = (height + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    out_width: tl.constexpr = (width + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    pixel, channel = matrix_tile(tl.program_id(0), channels, tile_pixels, tile_channels)
    image, row, column = place_of(pixel, height, width)
    used = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    total = tl.zeros([tile_pixels, tile_channels], tl.float32)
    for i in tl.static_range(kernel):
        down = row + padding - i * dilation
        row_inside = (down >= 0) & (down % stride == 0) & (down // stride < out_height)
        line = image * out_height + down // stride
        for j in tl.static_range(kernel):
            along = column + padding - j * dilation
            inside = row_inside & (along >= 0) & (along % stride == 0) & (along // stride < out_width)
            source = ((line * out_width + along // stride) * channels)[:, None] + channel[None, :]
            value = tl.load(gradient + source, mask=inside[:, None] & used, other=0.0)
            factor = tl.load(weight + (i * kernel + j) * channels + channel, mask=channel < channels, other=0.0)
            total += value.to(tl.float32) * factor.to(tl.float32)[None, :]
    tl.store(found + pixel[:, None] * channels + channel[None, :], total.to(found.dtype.element_ty), mask=used)


@triton.jit
def product(x, gradient, inside, used, shift):
    return tl.load(x + shift, mask=inside[:, None] & used, other=0.0).to(tl.float32) * gradient


@triton.jit
def weight_parts(
    x,
    gradient,
    parts,
    pixels,
    steps: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    kernel: tl.constexpr,
    stride: tl.constexpr,
    padding: tl.constexpr,
    dilation: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """Sums of the weight's gradient over parts of the output, each `steps` tiles.

    parts: (number, C, kernel, kernel). A program computes one row of the kernel: a whole kernel of 5x5 needs more
    registers than there are.
    """
    out_height: tl.constexpr = (height + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    out_width: tl.constexpr = (width + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    across: tl.constexpr = (channels + tile_channels - 1) // tile_channels
    shift: tl.constexpr = dilation * channels
    program = tl.program_id(0)
    channel = (program % across) * tile_channels + tl.arange(0, tile_channels)
    i = (program // across) % kernel
    part = program // (across * kernel)
    first = tl.zeros([tile_pixels, tile_channels], tl.float32)
    second = tl.zeros([tile_pixels, tile_channels], tl.float32)
    third = tl.zeros([tile_pixels, tile_channels], tl.float32)
    fourth = tl.zeros([tile_pixels, tile_channels], tl.float32)
    fifth = tl.zeros([tile_pixels, tile_channels], tl.float32)
    for step in range(steps):
        pixel = (part * steps + step) * tile_pixels + tl.arange(0, tile_pixels)
        image, row, column = place_of(pixel, out_height, out_width)
        top = row * stride - padding + i * dilation
        left = column * stride - padding
        used = ((pixel < pixels) & (top >= 0) & (top < height))[:, None] & (channel < channels)[None, :]
        arrived = tl.load(gradient + pixel[:, None] * channels + channel[None, :], mask=used, other=0.0)
        arrived = arrived.to(tl.float32)
        start = x + (((image * height + top) * width + left) * channels)[:, None] + channel[None, :]
        first += product(start, arrived, (left >= 0) & (left < width), used, 0)
        left += dilation
        second += product(start, arrived, (left >= 0) & (left < width), used, shift)
        left += dilation
        third += product(start, arrived, (left >= 0) & (left < width), used, 2 * shift)
        if kernel == 5:
            left += dilation
            fourth += product(start, arrived, (left >= 0) & (left < width), used, 3 * shift)
            left += dilation
            fifth += product(start, arrived, (left >= 0) & (left < width), used, 4 * shift)
    target = parts + ((part * channels + channel) * kernel + i) * kernel
    tl.store(target, tl.sum(first, axis=0), mask=channel < channels)
    tl.store(target + 1, tl.sum(second, axis=0), mask=channel < channels)
    tl.store(target + 2, tl.sum(third, axis=0), mask=channel < channels)
    if kernel == 5:
        tl.store(target + 3, tl.sum(fourth, axis=0), mask=channel < channels)
        tl.store(target + 4, tl.sum(fifth, axis=0), mask=channel < channels)


@dataclass(frozen=True)
class Window:
    """Equal along both axes. kernel: 3 or 5."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    def along(self, size: int) -> int:
        """Returns the size of the output along an axis of `size` pixels."""
        return windows_along(size, self.kernel, self.stride, self.padding, self.dilation)


class DepthwiseConv(torch.autograd.Function):
    """conv2d of x (N, C, H, W), channels_last, with a weight (C, 1, kernel, kernel).

    The weight may have another type than x: it is rounded to that of x. Its gradient is not rounded between.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        n, channels, height, width = x.shape
        size = window.kernel
        # Rounded and with neighbouring channels side by side, in one copy.
        taps = torch.empty((size * size, channels), dtype=x.dtype, device=x.device)
        taps.copy_(weight.detach().reshape(channels, size * size).t())
        y = empty_nhwc((n, channels, window.along(height), window.along(width)), x)
        run_convolve(x, taps, y, window, flipped=False)
        ctx.save_for_backward(x, taps)
        ctx.window, ctx.dtype = window, weight.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, taps = ctx.saved_tensors
        window: Window = ctx.window
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        for_x = gradient_of_input(x, taps, gradient, window) if ctx.needs_input_grad[0] else None
        for_weight = gradient_of_weight(x, gradient, window).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return for_x, for_weight, None


def run_convolve(x: Tensor, taps: Tensor, y: Tensor, window: Window, *, flipped: bool) -> None:
    _, channels, height, width = x.shape
    pixels = y.numel() // channels
    tile = tile_for(pixels, channels, LARGEST_TILE)
    shape = (height, width, channels, window.kernel, window.stride, window.padding, window.dilation)
    convolve[(programs_for(pixels, channels, tile),)](x, taps, y, pixels, *shape, flipped, *tile)


def gradient_of_input(x: Tensor, taps: Tensor, gradient: Tensor, window: Window) -> Tensor:
    n, channels, height, width = x.shape
    found = empty_nhwc((n, channels, height, width), x)
    if window.stride == 1:
        padding = window.dilation * (window.kernel - 1) - window.padding
        run_convolve(gradient, taps, found, Window(window.kernel, 1, padding, window.dilation), flipped=True)
        return found
    pixels = n * height * width
    tile = tile_for(pixels, channels, LARGEST_STRIDED_TILE)
    shape = (height, width, channels, window.kernel, window.stride, window.padding, window.dilation)
    input_gradient[(programs_for(pixels, channels, tile),)](gradient, taps, found, pixels, *shape, *tile)
    return found


def gradient_of_weight(x: Tensor, gradient: Tensor, window: Window) -> Tensor:
    """Returns a float32 tensor (C, 1, kernel, kernel)."""
    _, channels, height, width = x.shape
    pixels = gradient.numel() // channels
    tile = tile_for(pixels, channels, 1024)  # the sums of a whole row of the kernel share the registers
    tiles = -(-pixels // tile[0])
    steps = -(-tiles // PARTS)
    count = -(-tiles // steps)
    parts = torch.empty((count, channels, 1, window.kernel, window.kernel), dtype=torch.float32, device=x.device)
    grid = (count * window.kernel * -(-channels // tile[1]),)
    shape = (height, width, channels, window.kernel, window.stride, window.padding, window.dilation)
    weight_parts[grid](x, gradient, parts, pixels, steps, *shape, *tile)
    return parts.sum(0)
