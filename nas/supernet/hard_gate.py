"""One candidate under a gate whose value is exactly 1, so that multiplying by it would be waste.

What remains of such a gate is its gradient, the inner product <gradient, output>.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# f(gate * x) = gate * f(x) for gates > 0.
HOMOGENEOUS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


class HardGate:
    """The gate of the drawn candidates of all choices that share a row of logits.

    value: () tensor, 1; also (C,) ones for a candidate that takes them as a scale, see `scaled_norm`. all_values,
    index: those of all choices, (choices,), and where this one is among them, for what has the gradient of several at
    once; None where nobody asks.
    """

    def __init__(self, value: Tensor, *, all_values: Tensor | None = None, index: int = 0) -> None:
        self._value = value
        self.all_values = all_values
        self.index = index
        self._scales: dict[tuple[int, torch.dtype, bool], Tensor] = {}

    def run(self, candidate: nn.Module, *inputs: Any, **named: Any) -> Tensor:
        """The candidate's output, differentiable in the gate."""
        return self.run_instead(candidate, candidate, *inputs, **named)

    def run_instead(self, candidate: nn.Module, call: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
        """As `run`, by a call that runs the candidate's modules in its place.

        A candidate that ends in a batch norm without scale, as those of published searches do, takes the gate as that
        scale: the backward pass of the norm has the inner product anyway, and the output need not be kept for it.
        Pooling takes the gate at its input, which is kept for its backward pass, instead of keeping its output too.
        """
        if type(candidate) in HOMOGENEOUS and len(inputs) == 1 and not named:
            pooled: Tensor = call(pass_through(inputs[0], self._value))
            return pooled
        norm = self.scaled_norm(candidate)
        if norm is None:
            return pass_through(call(*inputs, **named), self._value)
        norm._parameters["weight"] = self._scale_of(norm)  # type: ignore[assignment]  # not a Parameter, for this pass
        try:
            output: Tensor = call(*inputs, **named)
        finally:
            norm._parameters["weight"] = None
        return output

    @staticmethod
    def keeps_output(candidate: nn.Module) -> bool:
        """Whether `run` keeps the candidate's output for the backward pass."""
        return type(candidate) not in HOMOGENEOUS and last_norm(candidate) is None

    @staticmethod
    def scaled_norm(candidate: nn.Module) -> _BatchNorm | None:
        """The norm that takes the gate as its scale in `run`, if one does."""
        return None if type(candidate) in HOMOGENEOUS else last_norm(candidate)

    def _scale_of(self, norm: _BatchNorm) -> Tensor:
        """(C,): one for all norms of a width, so that autograd adds up their gradients before it takes the sum."""
        assert norm.running_mean is not None  # last_norm
        width, dtype = norm.num_features, norm.running_mean.dtype
        if self._value.ndim:
            return self._value
        kind = width, dtype, torch.is_grad_enabled()  # a part of a model may run without
        if transformed():  # which wraps what is computed inside it: nothing to keep
            return self._value.to(dtype).expand(width).contiguous()
        if kind not in self._scales:
            # Contiguous: on a CPU torch takes wrong numbers from a scale that is expanded.
            self._scales[kind] = self._value.to(dtype).expand(width).contiguous()
        return self._scales[kind]


def last_norm(candidate: nn.Module) -> _BatchNorm | None:
    """The batch norm without scale whose output is the candidate's, where the structure alone tells: the end of plain
    sequences. Not one that keeps no statistics, whose type is then unknown, or that something else in it runs too."""
    module = candidate
    while isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and len(module):
        (*_, module) = module
    if type(module) not in NORMS or module.affine or module.running_mean is None:
        return None
    assert isinstance(module, _BatchNorm)
    return module if module is candidate or is_used_once(candidate, module) else None


# norm -> the candidate that is known to use it once: asked in every step, and only rebuilding a model changes it.
_USED_ONCE: WeakKeyDictionary[nn.Module, ref[nn.Module]] = WeakKeyDictionary()


def is_used_once(candidate: nn.Module, norm: nn.Module) -> bool:
    known = _USED_ONCE.get(norm)
    if known is not None and known() is candidate:
        return True
    once = uses(candidate, norm) == 1
    if once:
        _USED_ONCE[norm] = ref(candidate)
    return once


def uses(module: nn.Module, part: nn.Module) -> int:
    """How often `part` is a child in the tree of modules below `module`."""
    return sum((child is part) + uses(child, part) for child in module._modules.values() if child is not None)


class _PassThrough(torch.autograd.Function):
    """output * gate for a gate whose value is exactly 1, without the multiplication.

    Backward: the output's gradient as it is; the gate's is the inner product <gradient, output>.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(output, gate)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output, gate = ctx.saved_tensors
        # Grad mode is on when the backward pass is itself to be differentiated: only then the factor 1 matters.
        scaled = gradient * gate if torch.is_grad_enabled() else gradient
        return scaled, inner_product(gradient, output).to(gate.dtype)


def inner_product(one: Tensor, other: Tensor) -> Tensor:
    """<one, other> of two tensors of one shape, in float32 at least; its real part if they are complex."""
    if one.is_complex() or other.is_complex():
        product = (one.conj() * other).real
        return product.sum(dtype=torch.promote_types(product.dtype, torch.float32))
    if one.dtype != other.dtype or one.dtype not in (torch.float32, torch.float64):
        return (one * other).sum(dtype=torch.float32)
    if one.ndim == 4 and all(x.is_contiguous(memory_format=torch.channels_last) for x in (one, other)):
        one, other = (x.as_strided((x.numel(),), (1,)) for x in (one, other))  # in the order of memory, without a copy
    # Reads both once and writes nothing: less than half the time of (one * other).sum().
    return torch.dot(one.reshape(-1), other.reshape(-1))


def pass_through(output: Tensor, gate: Tensor) -> Tensor:
    """output: any shape; gate: a scalar whose value is 1. Returns output, differentiable in both.

    Inside of transforms of torch.func, and of forward-mode differentiation, it is the product itself, of which torch
    knows every derivative and how it is mapped.
    """
    if transformed():
        return output * gate.to(output.dtype)
    return _PassThrough.apply(output, gate)


def transformed() -> bool:
    """Whether a transform of torch.func runs (vmap, grad, jvp, ...), or dual numbers are in use."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
