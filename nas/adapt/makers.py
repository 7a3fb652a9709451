"""Makers of candidates for `nas.adapt.insert`: each starts from the weights of the module that it stands in for."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from nas.adapt.insertion import Maker, Place
from nas.errors import SpaceError
from nas.supernet.copying import copied, gradient_hooks


class Skip(nn.Module):
    """Returns its first input, whatever else the module in its place was given."""

    def forward(self, *given: Any, **named: Any) -> Any:
        return given[0] if given else next(iter(named.values()))


def skip() -> Maker:
    """The candidate ``skip``: the module is left out. Only where its output has the shape of its first input."""

    def make(place: Place) -> Mapping[str, nn.Module]:
        return {"skip": Skip()} if place.keeps_shape else {}

    return make


def other(name: str, factory: Callable[[nn.Module], nn.Module]) -> Maker:
    """A candidate of your own, e.g. another activation: ``other("silu", lambda module: nn.SiLU())``.

    name: of the candidate. factory: is given a copy of the module with its weights, and returns the candidate.
    """

    if not isinstance(name, str) or not callable(factory):
        raise SpaceError(
            f"other takes a name and a function, got {name!r} and {factory!r:.80}",
            fix='use other("silu", lambda module: nn.SiLU())',
        )

    def make(place: Place) -> Mapping[str, nn.Module]:
        candidate = factory(copied(place.module))
        if not isinstance(candidate, nn.Module):
            raise SpaceError(
                f"the maker of {name!r} returned a {type(candidate).__name__} at {place.path}, expected an nn.Module",
                fix="return the module itself",
            )
        return {name: candidate}

    return make


def factorised(*fractions: float) -> Maker:
    """Candidates ``rank_N`` for ``nn.Linear`` and ungrouped ``nn.Conv2d``: two layers with N channels between them.

    fractions: of the full rank min(out, in * height * width), each > 0 and < 1. The product of the two layers is the
    best approximation of the weight in the Frobenius norm, by its singular values.
    """
    _check_fractions("factorised", fractions)

    def make(place: Place) -> Mapping[str, nn.Module]:
        layer = place.module
        if not is_plain(layer) or has_hooks(layer):
            return {}
        if isinstance(layer, nn.Linear):
            ranks = [share(fraction, min(layer.weight.shape)) for fraction in fractions]
            return {f"rank_{rank}": _factorised_linear(layer, rank) for rank in ranks}
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            ranks = [share(fraction, min(layer.weight.flatten(1).shape)) for fraction in fractions]
            return {f"rank_{rank}": _factorised_conv(layer, rank) for rank in ranks}
        return {}

    return make


def depthwise() -> Maker:
    """The candidate ``depthwise`` for ungrouped ``nn.Conv2d`` larger than 1x1: a depthwise convolution, then a 1x1.

    The weight of each input channel, (out, height * width), is replaced by its best approximation of rank 1.
    """

    def make(place: Place) -> Mapping[str, nn.Module]:
        layer = place.module
        if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.kernel_size == (1, 1):
            return {}
        if not is_plain(layer) or has_hooks(layer):
            return {}
        spatial = _like(layer, layer.in_channels, layer.in_channels, groups=layer.in_channels, bias=False)
        mix = nn.Conv2d(
            layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None, dtype=_wide(layer.weight)
        )
        weight = layer.weight.detach().transpose(0, 1).flatten(2)  # (in, out, height * width)
        left, size, right = torch.linalg.svd(weight.to(_wide(weight)), full_matrices=False)
        root = size[:, :1].sqrt()
        with torch.no_grad():
            spatial.weight.copy_((root * right[:, 0]).reshape(spatial.weight.shape))
            mix.weight.copy_((root * left[:, :, 0]).T.reshape(mix.weight.shape))
            _copy_bias(layer, mix)
        return {"depthwise": _in_place_of(layer, spatial, mix)}

    return make


def smaller_kernel(size: int) -> Maker:
    """The candidate ``NxN`` for ``nn.Conv2d`` with a larger odd kernel: the centre of its kernel, with less padding.

    size: the new height and width, odd.
    """
    if type(size) is not int or size < 1 or size % 2 == 0:
        raise SpaceError(f"smaller_kernel takes an odd size >= 1, got {size!r}", fix="use smaller_kernel(3)")

    def make(place: Place) -> Mapping[str, nn.Module]:
        layer = place.module
        if not isinstance(layer, nn.Conv2d) or not is_plain(layer) or isinstance(layer.padding, str):
            return {}
        cut = [(full - size) // 2 for full in layer.kernel_size]
        padding = [
            before - less * dilation for before, less, dilation in zip(layer.padding, cut, layer.dilation, strict=True)
        ]
        if any(full % 2 == 0 for full in layer.kernel_size) or min(cut) < 1 or min(padding) < 0:
            return {}
        smaller = copied(layer)
        smaller.kernel_size, smaller.padding = (size, size), (padding[0], padding[1])
        if layer.padding_mode != "zeros":
            smaller._reversed_padding_repeated_twice = [one for one in reversed(padding) for _ in range(2)]
        centre = layer.weight.detach()[:, :, cut[0] : cut[0] + size, cut[1] : cut[1] + size]
        smaller.weight = in_place_of(layer.weight, centre.clone())
        return {f"{size}x{size}": smaller}

    return make


PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes what the layer of `PLAIN` does that it is of, with a weight of its own.

    Not a subclass that changes this, nor a layer whose weight is computed, e.g. by weight norm or pruning, or whose
    gradient a hook changes.
    """
    if not computes_as(layer, PLAIN) or layer._parameters.keys() != {"weight", "bias"} or layer._modules:
        return False
    return not any(map(is_hooked, layer.parameters()))


def is_hooked(parameter: nn.Parameter) -> bool:
    """Whether a function of others runs with its gradient, which another parameter would not have."""
    return any(gradient_hooks(parameter))


def computes_as(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is of one of the kinds, and runs its code: neither its class nor the module itself has other."""
    kind = next((kind for kind in kinds if isinstance(module, kind)), None)
    return kind is not None and not any(
        name in vars(module) or getattr(type(module), name, None) is not getattr(kind, name, None)
        for name in ("forward", "_conv_forward", "__call__")
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether functions of others run with the module, which new layers would not have."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def in_place_of(parameter: Tensor, values: Tensor) -> nn.Parameter:
    """Returns a parameter of these values that learns as another one does, and has its attributes."""
    made = nn.Parameter(values, requires_grad=parameter.requires_grad)
    vars(made).update(vars(parameter))
    return made


def _check_fractions(maker: str, fractions: tuple[Any, ...]) -> None:
    numbers = all(isinstance(fraction, Real) and not isinstance(fraction, bool) for fraction in fractions)
    if not fractions or not numbers or not all(0 < fraction < 1 for fraction in fractions):
        raise SpaceError(
            f"{maker} takes fractions between 0 and 1, got {', '.join(map(repr, fractions)) or 'none'}",
            fix=f"use {maker}(0.5)",
        )


def share(fraction: float, count: int, step: int = 1) -> int:
    """A fraction of the count, rounded up to a multiple of the step. 0.55 of 100 is 55, though the product of the
    floats is above 55."""
    return max(1, math.ceil(round(fraction * count / step, 9))) * step


def _wide(tensor: Tensor) -> torch.dtype:
    """The type in which singular values are computed: as exact as the tensor's, and not of 16 bits."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _in_place_of(layer: nn.Linear | nn.Conv2d, first: nn.Module, second: nn.Module) -> nn.Module:
    """Both layers as one, in the type of the layer, frozen as it is."""
    made = nn.Sequential(first, second)
    if layer.weight.dtype != _wide(layer.weight):
        made.to(layer.weight.dtype)
    for name, parameter in made.named_parameters():
        of = layer.bias if name.endswith("bias") else layer.weight
        parameter.requires_grad_(of is not None and of.requires_grad)
    return made


def _factorised_linear(layer: nn.Linear, rank: int) -> nn.Module:
    kind = _wide(layer.weight)
    first = nn.Linear(layer.in_features, rank, bias=False, dtype=kind)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, dtype=kind)
    _factorise(layer, first, second, rank)
    return _in_place_of(layer, first, second)


def _factorised_conv(layer: nn.Conv2d, rank: int) -> nn.Module:
    first = _like(layer, layer.in_channels, rank, groups=1, bias=False)
    second = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None, dtype=_wide(layer.weight))
    _factorise(layer, first, second, rank)
    return _in_place_of(layer, first, second)


def _like(layer: nn.Conv2d, in_channels: int, out_channels: int, *, groups: int, bias: bool) -> nn.Conv2d:
    """A convolution with the kernel, stride, padding and dilation of another one."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        layer.kernel_size,  # type: ignore[arg-type]  # a tuple of two
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=groups,
        bias=bias,
        padding_mode=layer.padding_mode,  # type: ignore[arg-type]
        dtype=_wide(layer.weight),
    )


def _factorise(
    layer: nn.Linear | nn.Conv2d, first: nn.Linear | nn.Conv2d, second: nn.Linear | nn.Conv2d, rank: int
) -> None:
    weight = layer.weight.detach().flatten(1)
    left, size, right = torch.linalg.svd(weight.to(_wide(weight)), full_matrices=False)
    root = size[:rank].sqrt()
    with torch.no_grad():
        first.weight.copy_((root[:, None] * right[:rank]).reshape(first.weight.shape))
        second.weight.copy_((left[:, :rank] * root).reshape(second.weight.shape))
        _copy_bias(layer, second)


def _copy_bias(layer: nn.Linear | nn.Conv2d, to: nn.Linear | nn.Conv2d) -> None:
    if layer.bias is not None:
        assert to.bias is not None  # made with one
        to.bias.copy_(layer.bias)
