"""The operations that each space has by default. configs/ops/ has the same for the commands."""

import functools

from nas.spaces.ops import (
    DilConv,
    InvertedResidual,
    Operation,
    ReLUConvBN,
    SearchNormalised,
    SepConv,
    Zero,
    avg_pool,
    max_pool,
    skip_connect,
)


def nas_bench_201() -> dict[str, Operation]:
    """The five operations of NAS-Bench-201, in the benchmark's order."""
    return {
        "none": Zero,
        "skip_connect": skip_connect,
        "nor_conv_1x1": functools.partial(ReLUConvBN, kernel_size=1),
        "nor_conv_3x3": functools.partial(ReLUConvBN, kernel_size=3),
        "avg_pool_3x3": avg_pool,
    }


def darts() -> dict[str, Operation]:
    """The eight operations of the DARTS space, in the published order."""
    return {
        "none": Zero,
        "max_pool_3x3": SearchNormalised(max_pool),
        "avg_pool_3x3": SearchNormalised(avg_pool),
        "skip_connect": skip_connect,
        "sep_conv_3x3": functools.partial(SepConv, kernel_size=3),
        "sep_conv_5x5": functools.partial(SepConv, kernel_size=5),
        "dil_conv_3x3": functools.partial(DilConv, kernel_size=3),
        "dil_conv_5x5": functools.partial(DilConv, kernel_size=5),
    }


def mbconv() -> dict[str, Operation]:
    """The six blocks of ProxylessNAS: kernel 3, 5, 7 x expansion 3, 6."""
    return {
        f"mbconv_{size}x{size}_e{expansion}": functools.partial(InvertedResidual, kernel_size=size, expansion=expansion)
        for expansion in (3, 6)
        for size in (3, 5, 7)
    }
