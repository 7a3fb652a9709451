"""Runs some operations on channels_last tensors by Triton kernels, where those of ATen and cuDNN are slow."""

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# The kinds of operations that the kernels compute faster, as measured on an H200: see scripts/README.md. They cover
# "depthwise_5x5" without dilation too, which cuDNN computes faster in images of 8x8.
WORTH_IT = frozenset({"dilated_depthwise", "depthwise_3x3", "avg_pool", "max_pool"})
LARGEST = 2**31 - 1  # elements: the kernels count in 32 bits
TYPES = (torch.float32, torch.bfloat16, torch.float16)


class FasterOps(TorchFunctionMode):
    """A context in which covered calls of conv2d, avg_pool2d and max_pool2d run by Triton. Others run unchanged.

    Covered: depthwise convolutions without bias, 3x3 or 5x5, at stride and dilation 1 or 2; 3x3 pooling with padding 1,
    at stride 1 or 2, the average without the padding. The input is a channels_last tensor on a GPU, in float32,
    bfloat16 or float16.
    The results are ATen's up to rounding, and the same in each run. They can be differentiated once. Autocast counts.
    The first call for each shape compiles a kernel, for about a second. Triton keeps it on disk.
    Each call costs some Python, so enter the context to record work, not to run it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        faster = FASTER.get(func)
        if faster is not None:
            output = faster(*args, **(kwargs or {}))
            if output is not None:
                return output
        return func(*args, **(kwargs or {}))


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Returns what torch.conv2d returns, or None if the call is not covered."""
    steps, spread, border = one_int(stride), one_int(dilation), one_int(padding)
    if bias is not None or groups == 1 or steps not in (1, 2) or spread not in (1, 2) or border is None or border < 0:
        return None
    kernel = weight.shape[-1]
    kind = f"depthwise_{kernel}x{kernel}" if spread == 1 else "dilated_depthwise"
    if kind not in WORTH_IT or not is_covered(input):
        return None
    if kernel not in (3, 5) or weight.shape != (groups, 1, kernel, kernel) or input.shape[1] != groups:
        return None
    if weight.device != input.device or weight.dtype not in TYPES or type(weight) not in (Tensor, nn.Parameter):
        return None
    device = input.device.type
    if torch.is_autocast_enabled(device):
        input = input.to(torch.get_autocast_dtype(device))
    elif weight.dtype != input.dtype:
        return None
    if input.dtype not in TYPES:
        return None
    from nas.methods.cuda_graphs.nhwc_depthwise import DepthwiseConv, Window

    window = Window(kernel, steps, border, spread)
    height, width = (window.along(size) for size in input.shape[2:])
    if min(height, width) < 1 or input.shape[0] * groups * height * width > LARGEST:
        return None
    return DepthwiseConv.apply(input, weight, window)  # which rounds the weight


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor | None:
    """Returns what torch.nn.functional.avg_pool2d returns, or None if the call is not covered."""
    if "avg_pool" not in WORTH_IT or count_include_pad or divisor_override is not None:
        return None
    step = covered_step(kernel_size, stride, padding, ceil_mode)
    if step is None or not is_covered(input):
        return None
    from nas.methods.cuda_graphs.nhwc_pooling import AveragePool

    return AveragePool.apply(input, step)


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """Returns what torch.nn.functional.max_pool2d returns, or None if the call is not covered."""
    if "max_pool" not in WORTH_IT or return_indices or one_int(dilation) != 1:
        return None
    step = covered_step(kernel_size, stride, padding, ceil_mode)
    if step is None or not is_covered(input):
        return None
    from nas.methods.cuda_graphs.nhwc_pooling import MaxPool

    return MaxPool.apply(input, step)


# nn.MaxPool2d reaches the mode as F.max_pool2d; nn.AvgPool2d and nn.Conv2d as the functions of torch's extension.
FASTER: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    torch.conv2d: conv2d,
    F.avg_pool2d: avg_pool2d,
    F.max_pool2d: max_pool2d,
    torch.max_pool2d: max_pool2d,
}


def one_int(value: Any) -> int | None:
    """Returns the number that holds along both axes, or None."""
    if isinstance(value, int):
        return value
    if isinstance(value, (list, tuple)) and len(value) in (1, 2) and value[0] == value[-1]:
        return value[0] if isinstance(value[0], int) else None
    return None


def covered_step(kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool) -> int | None:
    """Returns the stride of a pooling that the kernels cover, or None."""
    step = one_int(stride)
    return step if one_int(kernel_size) == 3 and one_int(padding) == 1 and step in (1, 2) and not ceil_mode else None


def is_covered(x: Tensor) -> bool:
    """Says whether the kernels can read the tensor: its layout, type, size and device."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dim() == 4
        and x.dtype in TYPES
        and x.shape[1] > 1
        and 0 < x.numel() <= LARGEST
        and x.is_contiguous(memory_format=torch.channels_last)
        and is_usable(x.device)
        and (not x.is_cuda or x.device.index == torch.cuda.current_device())  # where Triton launches
    )


@functools.lru_cache
def is_usable(device: torch.device) -> bool:
    """Says whether Triton works on the device. Tries it once, and warns if it fails."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from nas.methods.cuda_graphs.nhwc_pooling import AveragePool

        AveragePool.apply(torch.zeros(1, 16, 4, 4, device=device).to(memory_format=torch.channels_last), 1)
    except Exception as error:  # no C compiler, a driver that is too old, a read-only cache directory
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"Triton does not work, so cuDNN is used: {type(error).__name__}: {reason}", stacklevel=2)
        return False
    return True
