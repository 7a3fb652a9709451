"""Runs one candidate under a gate whose value is exactly 1.

The multiplication by 1 is skipped. Only the gate's gradient is computed: the inner product <gradient, output>.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm

from nas.supernet.hooked import is_watched

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# f(gate * x) = gate * f(x) for gates > 0.
HOMOGENEOUS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


class GateValues:
    """The gates of the drawn candidates of all choices. together: (choices,), each 1."""

    def __init__(self, together: Tensor) -> None:
        self.together = together

    @cached_property
    def each(self) -> tuple[Tensor, ...]:
        """The gate of each choice."""
        # unbind, because indexing in every choice would add one gradient of full size per choice. Not before it is
        # asked for: replayed passes compute the gradients of all gates at once. The first to ask may be a part of a
        # model that runs without gradients.
        with torch.inference_mode(False), torch.enable_grad():
            return self.together.unbind()


class HardGate:
    """The gate of the drawn candidates of all choices that share a row of logits.

    value: () tensor, 1; or (C,) ones for a candidate that takes them as a scale, see `scaled_norm`; or the gates of all
    choices. index: the position of this gate among those.
    """

    def __init__(self, value: Tensor | GateValues, *, index: int = 0) -> None:
        self._given = value
        self.index = index
        self._scales: dict[tuple[int, torch.dtype, bool], Tensor] = {}

    @property
    def all_values(self) -> Tensor | None:
        """(choices,): the gates of all choices, if they are known."""
        return self._given.together if isinstance(self._given, GateValues) else None

    @property
    def _value(self) -> Tensor:
        return self._given.each[self.index] if isinstance(self._given, GateValues) else self._given

    def run(self, candidate: nn.Module, *inputs: Any, **named: Any) -> Tensor:
        """Returns the candidate's output, differentiable in the gate."""
        return self.run_instead(candidate, candidate, *inputs, **named)

    def run_instead(self, candidate: nn.Module, call: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
        """Like `run`, but runs `call`, which runs the candidate's modules, in place of the candidate.

        Most candidates of published searches end in a batch norm without scale. Such a norm takes the gate as its
        scale: its backward pass computes the inner product anyway, so the output need not be kept. Pooling takes the
        gate at its input, because its backward pass keeps the input anyway and need not keep the output as well.
        """
        if is_homogeneous(candidate) and len(inputs) == 1 and not named:
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
        return not is_homogeneous(candidate) and last_norm(candidate) is None

    @staticmethod
    def scaled_norm(candidate: nn.Module) -> _BatchNorm | None:
        """The norm that takes the gate as its scale in `run`, if one does."""
        return None if is_homogeneous(candidate) else last_norm(candidate)

    def _scale_of(self, norm: _BatchNorm) -> Tensor:
        """(C,): the gate, expanded to the norm's width.

        All norms of a width share one tensor, so that autograd adds up their gradients before the sum over channels.
        """
        assert norm.running_mean is not None  # last_norm
        width, dtype = norm.num_features, norm.running_mean.dtype
        if self._value.ndim:
            return self._value
        kind = width, dtype, torch.is_grad_enabled()  # a part of a model may run without gradients
        if transformed():  # tensors inside a transform are wrapped and must not be kept
            return self._value.to(dtype).expand(width).contiguous()
        if kind not in self._scales:
            # Contiguous: on a CPU torch reads wrong numbers from an expanded scale.
            self._scales[kind] = self._value.to(dtype).expand(width).contiguous()
        return self._scales[kind]


def is_homogeneous(candidate: nn.Module) -> bool:
    return type(candidate) in HOMOGENEOUS and not is_watched(candidate)


def last_norm(candidate: nn.Module) -> _BatchNorm | None:
    """Returns the batch norm without scale that ends a candidate, or None.

    Finds the norm at the end of plain (nested) sequences only. Returns None for a norm without running statistics,
    whose dtype is unknown, for a norm that the candidate uses at another place as well, and where a hook may change
    what the norm returns.
    """
    module = candidate
    while isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and len(module):
        if is_watched(module):
            return None
        (*_, module) = module
    if type(module) not in NORMS or module.affine or module.running_mean is None or is_watched(module):
        return None
    assert isinstance(module, _BatchNorm)
    return module if module is candidate or is_used_once(candidate, module) else None


# norm -> the candidate that is known to use it once. A cache: every step asks, and only a rebuilt model changes it.
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
    """The number of times that `part` is a child in the tree of modules below `module`."""
    return sum((child is part) + uses(child, part) for child in module._modules.values() if child is not None)


class _PassThrough(torch.autograd.Function):
    """Returns output * gate for a gate whose value is exactly 1, without the multiplication.

    Backward: the output receives the gradient unchanged; the gate receives the inner product <gradient, output>.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(output, gate)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output, gate = ctx.saved_tensors
        # The factor 1 matters only if the backward pass is differentiated too, and then grad mode is on.
        scaled = gradient * gate if torch.is_grad_enabled() else gradient
        return scaled, inner_product(gradient, output).to(gate.dtype)


def inner_product(one: Tensor, other: Tensor) -> Tensor:
    """<one, other> of two tensors of the same shape, in float32 or wider; the real part for complex tensors."""
    if one.is_complex() or other.is_complex():
        product = (one.conj() * other).real
        return product.sum(dtype=torch.promote_types(product.dtype, torch.float32))
    if one.dtype != other.dtype or one.dtype not in (torch.float32, torch.float64):
        one = one.float() if one.dtype is torch.float16 else one  # products above 65,504 overflow in float16
        return (one * other).sum(dtype=torch.float32)
    if one.ndim == 4 and all(x.is_contiguous(memory_format=torch.channels_last) for x in (one, other)):
        one, other = (x.as_strided((x.numel(),), (1,)) for x in (one, other))  # in memory order, without a copy
    # Reads both tensors once and writes no product: takes less than half the time of (one * other).sum().
    return torch.dot(one.reshape(-1), other.reshape(-1))


def pass_through(output: Tensor, gate: Tensor) -> Tensor:
    """Returns `output`, differentiable in `output` and in `gate`.

    output: any shape. gate: a scalar whose value is 1. Inside transforms of torch.func and forward-mode
    differentiation it returns the product, for which torch knows every derivative and batching rule.
    """
    if transformed():
        return output * gate.to(output.dtype)
    return _PassThrough.apply(output, gate)


def transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp, ...) or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
