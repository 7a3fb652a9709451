"""Narrower candidates: copies of a module that keep the most important of its inner channels or heads.

The inner channels of a module are found by following its graph (torch.fx): they run from a convolution or linear layer
through norms, activations, depthwise convolutions, additions and products to the next layers. Channels that the module
shows to its surroundings, by its input or its output, stay as they are.
"""

import inspect
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.adapt.insertion import Maker, Place, fits
from nas.adapt.makers import _check_fractions, computes_as, in_place_of, is_hooked, is_plain, share
from nas.errors import SpaceError
from nas.runtime.modes import evaluation_mode
from nas.supernet.copying import copied

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
# Modules and functions that treat every channel alike, so that their output has the channels of their input.
ALIKE = (
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU),
    *(nn.Mish, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
)
POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Dropout2d)  # if the channels have height and width behind
POOL_FUNCTIONS = frozenset({"dropout2d", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d"})
ALIKE_FUNCTIONS = frozenset(
    {"relu", "relu6", "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "leaky_relu", "elu", "mish"}
    | {"dropout", "contiguous", "relu_", "silu_"}
    | {"add", "add_", "mul", "mul_", "sub", "iadd", "imul", "truediv", "div"}
)


@dataclass
class Channels:
    """Channels that are kept or left out together.

    count: how many. axis: of a tensor: 1 behind a convolution, -1 behind a linear layer. places: how many axes follow:
    2 behind a convolution over height and width, 0 behind a linear layer. written: layers whose outputs they are. read:
    layers whose inputs they are. along: norms and depthwise convolutions that they pass. fixed: whether they have to
    stay. block: how many neighbours are kept or left out together: a group of an nn.GroupNorm. merged: the channels
    that these became part of.
    """

    count: int
    axis: int
    places: int
    written: list[Layer] = field(default_factory=list)
    read: list[Layer] = field(default_factory=list)
    along: list[nn.Module] = field(default_factory=list)
    fixed: bool = False
    block: int = 1
    merged: "Channels | None" = None

    def all(self) -> "Channels":
        return self if self.merged is None else self.merged.all()

    def importance(self) -> Tensor:
        """(count,): the L2 norm of all weights that write or read a channel.

        The weights of norms are left out: a ResNet-20 (CIFAR-10) at half width loses more with them (0.88 instead of
        0.77 before fine-tuning). The norm of the reading weights alone, or a product of both, is within 0.03.
        """
        squares = [_squares(layer.weight).sum(1) for layer in self.written]
        squares += [_squares(layer.weight.transpose(0, 1)).sum(1) for layer in self.read]
        return torch.stack(squares).sum(0).sqrt()

    def width(self, fraction: float, multiple_of: int) -> int:
        """Returns how many channels a fraction keeps: a multiple of `multiple_of`, and whole blocks."""
        return min(self.count, share(fraction, self.count, math.lcm(multiple_of, self.block)))

    def largest(self, kept: int) -> Tensor:
        """(kept,): the indices of the most important channels, ascending."""
        blocks = self.importance().unflatten(0, (-1, self.block)).square().sum(1)
        first = blocks.topk(kept // self.block).indices.sort().values * self.block
        return (first[:, None] + torch.arange(self.block, device=first.device)).flatten()

    def keep(self, index: Tensor) -> None:
        """Cut the layers down to the channels at `index`, (kept,) ascending."""
        for layer in self.written:
            _cut(layer, "weight", index, 0)
            _cut(layer, "bias", index, 0)
            setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(index))
        for layer in self.read:
            _cut(layer, "weight", index, 1)
            setattr(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", len(index))
        for module in self.along:
            for name in ("weight", "bias", "running_mean", "running_var"):
                _cut(module, name, index, 0)
            if isinstance(module, nn.LayerNorm):
                module.normalized_shape = (len(index),)
            elif isinstance(module, _BatchNorm):
                module.num_features = len(index)
            elif isinstance(module, nn.GroupNorm):
                module.num_groups = max(1, module.num_groups * len(index) // module.num_channels)
                module.num_channels = len(index)
            else:
                module.in_channels = module.out_channels = module.groups = len(index)  # type: ignore[assignment]


def _squares(weight: Tensor) -> Tensor:
    """(rows, all else): the squared size of each entry, in float32 or wider."""
    sizes = weight.detach().abs()
    return sizes.to(torch.promote_types(sizes.dtype, torch.float32)).flatten(1).square()


def _cut(module: nn.Module, name: str, index: Tensor, axis: int) -> None:
    tensor = getattr(module, name, None)
    if not isinstance(tensor, Tensor):
        return
    part = tensor.detach().index_select(axis, index.to(tensor.device))
    setattr(module, name, in_place_of(tensor, part) if isinstance(tensor, nn.Parameter) else part)


def narrower(*fractions: float, multiple_of: int = 8) -> Maker:
    """Candidates ``width_F``: copies of the module with the fraction F of its inner channels.

    fractions: each > 0 and < 1. multiple_of: widths are rounded up to a multiple, which kernels run faster.
    Which channels are kept: those whose weights, of all layers that write or read them, have the largest L2 norm.
    The layers around the module do not change. A place without inner channels, or whose code torch.fx cannot follow,
    gets no candidate.
    """
    _check_fractions("narrower", fractions)
    if type(multiple_of) is not int or multiple_of < 1:
        raise SpaceError(
            f"narrower takes a multiple_of >= 1, got {multiple_of!r}", fix="use narrower(0.5, multiple_of=1)"
        )

    def make(place: Place) -> Mapping[str, nn.Module]:
        made: dict[str, nn.Module] = {}
        before: set[tuple[int, ...]] = set()
        for fraction in fractions:
            narrow = copied(place.module)
            widths: list[int] = []
            narrowed = False
            for channels in inner_channels(narrow, place):
                kept = channels.width(fraction, multiple_of)
                if kept < channels.count:
                    channels.keep(channels.largest(kept))
                    narrowed = True
                widths.append(kept)
            if narrowed and tuple(widths) not in before and fits(place, narrow):
                made[f"width_{fraction:g}"] = narrow
                before.add(tuple(widths))
        return made

    return make


class _Tracer(fx.Tracer):
    """Takes every layer, norm and activation as one node, also those of other libraries."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (Layer, _BatchNorm, nn.LayerNorm, nn.GroupNorm)) or computes_as(m, ALIKE)
        return known or super().is_leaf_module(m, module_qualified_name)


def inner_channels(module: nn.Module, place: Place | None = None) -> list[Channels]:
    """The channels inside a module that can be left out; none where torch.fx cannot follow its code.

    module: that of the place, or a copy of it. place: None if it is not known what the module is given.
    """
    try:
        with evaluation_mode(module):
            # As it ran in the place: in eval mode, with the arguments that were no tensors.
            graph = _Tracer().trace(module, concrete_args=None if place is None else _plain_arguments(place))
    except Exception:  # whatever a module's own code raises when it is given symbols for tensors
        return []
    runs: dict[nn.Module, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            runs[called] = runs.get(called, 0) + 1
    found: list[Channels] = []
    of: dict[fx.Node, Channels | None] = {}
    for node in graph.nodes:
        of[node] = _followed(node, of, found, module, runs)
    owners = Counter(parameter for _, parameter in module.named_parameters(remove_duplicate=False))
    given = [] if place is None else [one for one in (*place.inputs, *place.named.values()) if isinstance(one, Tensor)]
    flat = bool(given) and all(one.ndim == 2 for one in given)
    for channels in map(Channels.all, found):
        layers = [*channels.written, *channels.read, *channels.along]
        parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
        tied = any(owners[parameter] > 1 or is_hooked(parameter) for parameter in parameters)
        # Behind a linear layer a batch norm has the channels only if there are no axes between.
        channels.fixed |= tied or (
            channels.axis == -1 and not flat and any(isinstance(m, _BatchNorm) for m in channels.along)
        )
    whole = {id(channels): channels for channels in map(Channels.all, found)}
    return [one for one in whole.values() if not one.fixed and one.written and one.read]


def _plain_arguments(place: Place) -> dict[str, Any]:
    """Returns name -> value of each argument that is no tensor. An argument that was not given has its default."""
    signature = inspect.signature(place.module.forward)
    given = signature.bind(*place.inputs, **place.named)
    given.apply_defaults()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: value
        for name, value in given.arguments.items()
        if not isinstance(value, Tensor) and signature.parameters[name].kind in kinds
    }


def _followed(
    node: fx.Node,
    of: dict[fx.Node, Channels | None],
    found: list[Channels],
    root: nn.Module,
    runs: Mapping[nn.Module, int],
) -> Channels | None:
    """The channels of a node's output; None where they are not known. What an unknown node reads has to stay."""
    inputs = [of[one] for one in node.all_input_nodes]
    first = inputs[0].all() if inputs and inputs[0] is not None else None
    has_places = first is not None and first.places == 2
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if computes_as(module, ALIKE) and (first is None or has_places or not isinstance(module, POOLS)):
            return first
        if runs[module] == 1:
            if isinstance(module, Layer) and is_plain(module):
                return _through_layer(module, first, found)
            if first is not None and _norms(module, first):
                first.along.append(module)
                if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
                    first.block = math.lcm(first.block, module.num_channels // module.num_groups)
                return first
    elif node.op in ("call_function", "call_method"):
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name in ALIKE_FUNCTIONS or (name in POOL_FUNCTIONS and has_places):
            return _together(inputs)
        if name == "mean" and _over_places(node) and (first is None or has_places):
            return first
    for one in inputs:
        if one is not None:
            one.all().fixed = True
    return None


def _norms(module: nn.Module, channels: Channels) -> bool:
    """Whether the module is a norm with one entry for each of the channels."""
    if isinstance(module, nn.LayerNorm):
        return channels.axis == -1 and module.normalized_shape == (channels.count,)
    if isinstance(module, nn.GroupNorm):
        return channels.axis == 1 and module.num_channels == channels.count
    return isinstance(module, _BatchNorm) and module.num_features == channels.count


def _through_layer(layer: Layer, first: Channels | None, found: list[Channels]) -> Channels | None:
    groups, axis = getattr(layer, "groups", 1), -1 if isinstance(layer, nn.Linear) else 1
    if groups > 1 and first is not None and groups == layer.weight.shape[0] == first.count and first.axis == axis:
        first.along.append(layer)  # depthwise
        return first
    if first is not None:
        first.read.append(layer)
        first.fixed |= groups > 1 or first.axis != axis or layer.weight.shape[1] != first.count
    written = Channels(layer.weight.shape[0], axis, layer.weight.ndim - 2, written=[layer], fixed=groups > 1)
    found.append(written)
    return written


def _together(inputs: list[Channels | None]) -> Channels | None:
    """Merges the channels of the terms of a sum or product. A term whose channels are unknown fixes the others."""
    whole = [one.all() for one in inputs if one is not None]
    for one in whole:
        if len(whole) < len(inputs) or any(
            (one.count, one.axis, one.places) != (other.count, other.axis, other.places) for other in whole
        ):
            one.fixed = True
        if one is not whole[0].all():
            first = whole[0].all()
            first.written += one.written
            first.read += one.read
            first.along += one.along
            first.fixed |= one.fixed
            first.block = math.lcm(first.block, one.block)
            one.merged = first
    return whole[0].all() if whole else None


def _over_places(node: fx.Node) -> bool:
    """Whether a mean over height and width keeps the channels at axis 1 of four."""
    arguments = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
    dims: Any = arguments.get("dim")
    return bool(arguments.get("keepdim")) and dims in ((2, 3), [2, 3], (-2, -1), [-2, -1], (-1, -2), [-1, -2])
