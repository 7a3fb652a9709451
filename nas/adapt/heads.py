"""Narrower candidates of attention: copies that keep the most important heads."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nas.adapt.insertion import Maker, Place, fits
from nas.adapt.makers import _check_fractions, is_plain
from nas.adapt.narrowing import _cut, _squares
from nas.supernet.copying import copied
from nas.supernet.undisturbed import undisturbed


def fewer_heads(*fractions: float) -> Maker:
    """Candidates ``heads_N``: copies of an attention module with N of its heads, those with the largest weights.

    fractions: of the heads, each > 0 and < 1. For attention as in timm: linear layers `qkv` and `proj`, and the
    numbers `num_heads` and `head_dim`, where `qkv` returns (..., 3 * num_heads * head_dim) in this order, and the heads
    are independent. Other modules get no candidate.
    """
    _check_fractions("fewer_heads", fractions)

    def make(place: Place) -> Mapping[str, nn.Module]:
        attention = place.module
        parts = getattr(attention, "qkv", None), getattr(attention, "proj", None)
        heads, width = getattr(attention, "num_heads", None), getattr(attention, "head_dim", None)
        if not all(isinstance(part, nn.Linear) and is_plain(part) for part in parts) or not isinstance(heads, int):
            return {}
        if not isinstance(width, int) or parts[0].out_features != 3 * heads * width:  # type: ignore[union-attr]
            return {}
        if parts[1].in_features != heads * width:  # type: ignore[union-attr]
            return {}
        kept = {max(1, round(fraction * heads)) for fraction in fractions} - {heads}
        made = {count: _with_heads(attention, count)[0] for count in sorted(kept, reverse=True)}
        return {f"heads_{count}": one for count, one in made.items() if fits(place, one) and _independent(place, count)}

    return make


@torch.no_grad()
def _independent(place: Place, count: int) -> bool:
    """Whether a module with fewer heads gives what the whole one gives if `proj` does not read the others. Both have
    random weights and inputs, so that the code alone decides."""
    generator = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor, size: float = 1.0) -> Tensor:
        floats = tensor.is_floating_point()
        return (size * torch.randn(tensor.shape, generator=generator)).to(tensor) if floats else tensor

    whole: Any = copied(place.module)
    for parameter in whole.parameters():
        parameter.copy_(noise(parameter, max((1, *parameter.shape)) ** -0.5))
    narrow, kept = _with_heads(whole, count)
    whole.proj.weight[:, ~torch.isin(torch.arange(whole.proj.in_features), kept.cpu())] = 0
    inputs, named = tree_map_only(Tensor, noise, (place.inputs, dict(place.named)))
    outputs = []
    for module in (whole, narrow):
        with undisturbed(module, seed=0):
            outputs.append(module(*inputs, **named))
    return bool((outputs[0] - outputs[1]).norm() <= 0.02 * outputs[0].norm())


def _with_heads(attention: nn.Module, count: int) -> tuple[nn.Module, Tensor]:
    """The module with the most important heads, and their channels of one of q, k and v."""
    narrow: Any = copied(attention)
    heads, width = narrow.num_heads, narrow.head_dim
    squares = _squares(narrow.qkv.weight).sum(1).reshape(3, heads, width).sum((0, 2))
    squares += _squares(narrow.proj.weight).sum(0).reshape(heads, width).sum(1)
    best = squares.topk(count).indices.sort().values
    channels = (best[:, None] * width + torch.arange(width, device=best.device)).flatten()
    rows = torch.cat([part * heads * width + channels for part in range(3)])
    _cut(narrow.qkv, "weight", rows, 0)
    _cut(narrow.qkv, "bias", rows, 0)
    _cut(narrow.proj, "weight", channels, 1)
    narrow.qkv.out_features, narrow.proj.in_features = len(rows), len(channels)
    narrow.num_heads = count
    if hasattr(narrow, "attn_dim"):
        narrow.attn_dim = count * width
    return narrow, channels
