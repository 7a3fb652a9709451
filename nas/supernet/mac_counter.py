"""Counts the multiply-accumulates that a model runs in its forward pass."""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch

Shape = Sequence[int]


class NoModules:
    """Replaces torch's module tracker, which fails in a model that differentiates in its forward pass."""

    parents = ("Global",)

    def __enter__(self) -> "NoModules":
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        return None


def attention(query: Shape, key: Shape, value: Shape, *others: Any, **named: Any) -> int:
    from torch.utils.flop_counter import sdpa_flop_count  # imports Triton, which takes most of a second

    flops: int = sdpa_flop_count(query, key, value)
    return flops


def recurrent_layer(inputs: Shape, from_input: Shape, from_state: Shape, *others: Any, **named: Any) -> int:
    """inputs: (time, batch, features), or (steps of all sequences, features)."""
    return recurrent(inputs, [from_input, from_state])


def recurrent(inputs: Shape, weights: Sequence[Shape], *others: Any, **named: Any) -> int:
    """weights: of all layers, each matrix of which multiplies every step once."""
    return 2 * math.prod(inputs[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


def bilinear(one: Shape, weight: Shape, other: Shape, *others: Any, **named: Any) -> int:
    return 2 * one[0] * math.prod(weight)


def matrix_vector(matrix: Shape, vector: Shape, *others: Any, **named: Any) -> int:
    return 2 * math.prod(matrix)


def added_matrix_vector(added: Shape, matrix: Shape, *others: Any, **named: Any) -> int:
    return 2 * math.prod(matrix)


def added_matrices(added: Shape, one: Shape, other: Shape, *others: Any, **named: Any) -> int:
    return 2 * math.prod(one) * other[-1]


# Operators of torch that its own counter takes for free. The values count two operations for each multiply-accumulate.
UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten.mkldnn_rnn_layer: recurrent_layer,
    torch.ops.aten._cudnn_rnn: recurrent,
    torch.ops.aten._trilinear: bilinear,
    torch.ops.aten.mv: matrix_vector,
    torch.ops.aten.dot: matrix_vector,
    torch.ops.aten.addmv: added_matrix_vector,
    torch.ops.aten.addbmm: added_matrices,
}


class MacCounter:
    """A context manager that counts the multiply-accumulates of convolutions and matrix products.

    `total` is the count inside the context. torch's formulas count two operations for each multiply-accumulate. Inside
    the context torch's transformer layers do not take their fast path, a single operator of which nothing is counted.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        self._mode = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
        self._mode.mod_tracker = NoModules()  # type: ignore[assignment]
        self._fastpath = True

    @property
    def total(self) -> int:
        return self._mode.get_total_flops() // 2

    def __enter__(self) -> "MacCounter":
        self._fastpath = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        self._mode.__enter__()
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._mode.__exit__(*exception)
        torch.backends.mha.set_fastpath_enabled(self._fastpath)
