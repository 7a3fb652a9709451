"""Candidate operations. Each is built as op(c_in, c_out, stride, affine) and maps (N, c_in, H, W) to
(N, c_out, ceil(H / stride), ceil(W / stride)).

affine: whether batch norms have a scale and a shift. Published searches leave both out, because a candidate could undo
its gate by its scale. The derived network has both.
A new operation becomes selectable by its name in ``nas/spaces/__init__.py``, a line in the ``operation`` table of
``nas/settings/names.py``, and a line in a ``configs/ops/*.yaml``. If it draws random numbers, add it to ``RANDOM`` in
``nas/methods/cuda_graphs/trace.py``. An operation in a package of your own needs none of this: see ``CONTRIBUTING.md``.
Sources: the op tables of DARTS (Liu et al. 2019), NAS-Bench-201 (Dong & Yang 2020), S1 to S4 (Zela et al. 2020) and
ProxylessNAS (Cai et al. 2019).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.runtime.user_functions import plain_partial

# (c_in, c_out, stride, affine) -> module
Operation = Callable[[int, int, int, bool], nn.Module]


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution, batch norm: ``nor_conv_*`` of NAS-Bench-201 and the preprocessing of DARTS cells."""

    def __init__(self, c_in: int, c_out: int, stride: int, affine: bool, *, kernel_size: int) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(c_in, c_out, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(c_out, affine=affine),
        )


def depthwise_separable(
    c_in: int, c_out: int, stride: int, affine: bool, *, kernel_size: int, dilation: int = 1
) -> list[nn.Module]:
    """ReLU, depthwise convolution, pointwise convolution, batch norm."""
    padding = dilation * (kernel_size // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(c_in, c_in, kernel_size, stride, padding, dilation, groups=c_in, bias=False),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        nn.BatchNorm2d(c_out, affine=affine),
    ]


class SepConv(nn.Sequential):
    """``sep_conv_*``: two depthwise separable convolutions. The first has the stride."""

    def __init__(self, c_in: int, c_out: int, stride: int, affine: bool, *, kernel_size: int) -> None:
        super().__init__(
            *depthwise_separable(c_in, c_in, stride, affine, kernel_size=kernel_size),
            *depthwise_separable(c_in, c_out, 1, affine, kernel_size=kernel_size),
        )


class DilConv(nn.Sequential):
    """``dil_conv_*``: one depthwise separable convolution with dilation 2."""

    def __init__(self, c_in: int, c_out: int, stride: int, affine: bool, *, kernel_size: int) -> None:
        super().__init__(*depthwise_separable(c_in, c_out, stride, affine, kernel_size=kernel_size, dilation=2))


class FactorizedReduce(nn.Module):
    """Halves the resolution with two 1x1 convolutions of stride 2: one over even and one over odd rows and columns.

    A ReLU comes first and a batch norm last. An odd size is padded by one row or column of zeros at the end.
    """

    def __init__(self, c_in: int, c_out: int, affine: bool) -> None:
        super().__init__()
        self.even = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(c_in, c_out - c_out // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))


def skip_connect(c_in: int, c_out: int, stride: int, affine: bool) -> nn.Module:
    """``skip_connect``: a FactorizedReduce at stride 2. At stride 1 the identity, or a ReLU, 1x1 convolution and batch
    norm if the number of channels changes."""
    if stride == 1:
        return nn.Identity() if c_in == c_out else ReLUConvBN(c_in, c_out, 1, affine, kernel_size=1)
    return FactorizedReduce(c_in, c_out, affine)


class Zero(nn.Module):
    """``none``: zeros of the shape that the other operations return."""

    def __init__(self, c_in: int, c_out: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.c_out = c_out
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        return x.new_zeros(n, self.c_out, -(-height // self.stride), -(-width // self.stride))


class Noise(nn.Module):
    """``noise`` of S4: N(0, 1) noise of the shape that the other operations return.

    Every forward pass, also in evaluation mode, draws new noise from torch's own generator. The operation is a test: a
    search that derives it is misled.

    Source: Zela et al. 2020, sec. 3.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.c_out = c_out
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        shape = (n, self.c_out, -(-height // self.stride), -(-width // self.stride))
        return torch.randn(shape, dtype=x.dtype, device=x.device)


def max_pool(c_in: int, c_out: int, stride: int, affine: bool, *, kernel_size: int = 3) -> nn.Module:
    """``max_pool_3x3`` of DARTS. See `avg_pool`."""
    return nn.MaxPool2d(kernel_size, stride, kernel_size // 2)


def avg_pool(c_in: int, c_out: int, stride: int, affine: bool, *, kernel_size: int = 3) -> nn.Module:
    """``avg_pool_3x3``: the average leaves out the padding. Keeps the number of channels."""
    return nn.AvgPool2d(kernel_size, stride, kernel_size // 2, count_include_pad=False)


class SearchNormalised:
    """Builds `op` followed by a batch norm in a search (affine False), and `op` alone in the derived network.

    DARTS does so with pooling, which has no batch norm of its own: without the norm, pooling would enter the sum on
    another scale than the convolutions.
    """

    def __init__(self, op: Operation) -> None:
        self.op = plain_partial(op)

    def __call__(self, c_in: int, c_out: int, stride: int, affine: bool) -> nn.Module:
        module = self.op(c_in, c_out, stride, affine)
        return module if affine else nn.Sequential(module, nn.BatchNorm2d(c_out, affine=False))


def conv_bn_relu6(
    c_in: int, c_out: int, *, kernel_size: int = 1, stride: int = 1, groups: int = 1, affine: bool = True
) -> list[nn.Module]:
    """Convolution, batch norm, ReLU6: the building block of the MobileNetV2 family."""
    return [
        nn.Conv2d(c_in, c_out, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out, affine=affine),
        nn.ReLU6(),
    ]


class InvertedResidual(nn.Module):
    """``mbconv_*``: a 1x1 convolution that expands, a depthwise convolution, and a 1x1 convolution that projects.

    No activation follows the projection. The input is added if it has the shape of the output.
    expansion: inner channels per input channel; 1 leaves out the first convolution.
    Source: Sandler et al. 2018 (MobileNetV2), sec. 3.3.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, affine: bool, *, kernel_size: int, expansion: int) -> None:
        super().__init__()
        width = c_in * expansion
        self.residual = stride == 1 and c_in == c_out
        self.convs = nn.Sequential(
            *(conv_bn_relu6(c_in, width, affine=affine) if expansion > 1 else []),
            *conv_bn_relu6(width, width, kernel_size=kernel_size, stride=stride, groups=width, affine=affine),
            nn.Conv2d(width, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convs(x) if self.residual else self.convs(x)
