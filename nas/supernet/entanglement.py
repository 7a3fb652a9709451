"""Weight entanglement: candidates of one choice share the kernels of their convolutions.

With one drawn candidate a step, separate kernels are trained in one step of five, and small kernels learn faster than
large ones: early losses favour the small ones. A shared kernel learns whenever one of its candidates is drawn.
Source: Sukthanker et al. 2024 (TangleNAS); before it, Cai et al. 2020 (Once-for-All) for kernel sizes.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nas.supernet.hooked import is_watched


class CentreConv2d(nn.Conv2d):
    """A convolution whose kernel is the centre of a larger convolution's kernel.

    own: the convolution that it replaces. larger: the other one. `weight` is the parameter of `larger`, of the larger
    shape: both train it. The bias is that of `own`.
    """

    def __init__(self, own: nn.Conv2d, larger: nn.Conv2d) -> None:
        super().__init__(**settings(own), bias=False, device="meta")  # no random numbers: the weight is replaced
        self.weight, self.bias = larger.weight, own.bias
        self.train(own.training)

    def centre(self) -> Tensor:
        """Returns the kernel, a view of `weight`."""
        top, left = ((full - size) // 2 for full, size in zip(self.weight.shape[2:], self.kernel_size, strict=True))
        height, width = self.kernel_size
        return self.weight[:, :, top : top + height, left : left + width]

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.centre(), self.bias)

    def separate(self) -> nn.Conv2d:
        """Returns a plain convolution with a copy of the kernel."""
        plain = nn.Conv2d(**settings(self), bias=False, device="meta")
        plain.weight = nn.Parameter(self.centre().detach().clone(), requires_grad=self.weight.requires_grad)
        plain.bias = self.bias
        return plain.train(self.training)


def settings(conv: nn.Conv2d) -> dict[str, Any]:
    """The arguments of a convolution, without the bias."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(conv, name) for name in names}


def entangle(candidates: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Lets the candidates of one choice share the kernels of their convolutions, in place.

    Two convolutions share a kernel if they are at the same place of candidates of the same structure, differ in the
    size of the kernel at most, and read the same pixels at the centre: ``nor_conv_1x1`` and ``nor_conv_3x3``,
    ``sep_conv_3x3`` and ``sep_conv_5x5`` with their pointwise convolutions. Norms and biases stay separate.
    Returns the candidates, where one that is itself a convolution is a new module.
    """
    entangled = dict(candidates)
    for places in alike(candidates):
        *smaller, (_, _, largest) = sorted(places, key=lambda place: place[2].weight[0, 0].numel())
        for name, path, conv in smaller:
            if conv.kernel_size == largest.kernel_size and conv.padding == largest.padding:
                conv.weight = largest.weight
            elif is_centre(conv, of=largest):
                shared = CentreConv2d(conv, largest)
                if path:
                    entangled[name].set_submodule(path, shared)
                else:
                    entangled[name] = shared
    return entangled


def alike(candidates: Mapping[str, nn.Module]) -> list[list[tuple[str, str, nn.Conv2d]]]:
    """Returns groups of (candidate, path, convolution), which may differ in the size of the kernel alone."""
    found: dict[Any, list[tuple[str, str, nn.Conv2d]]] = {}
    for name, candidate in candidates.items():
        parts = dict(candidate.named_modules())
        structure = tuple((path, type(part)) for path, part in parts.items())
        for path, part in parts.items():
            if type(part) is nn.Conv2d and not isinstance(part.padding, str) and not is_watched(part):
                kept = {key: value for key, value in settings(part).items() if key not in ("kernel_size", "padding")}
                found.setdefault((structure, path, *kept.values()), []).append((name, path, part))
    return list(found.values())


def is_centre(conv: nn.Conv2d, *, of: nn.Conv2d) -> bool:
    """Whether a convolution equals one with the larger kernel of `of`, whose border is zero."""
    margins = [
        (int(of.padding[axis]) - int(conv.padding[axis]), of.kernel_size[axis] - conv.kernel_size[axis])
        for axis in (0, 1)
    ]
    return all(
        less >= 0 and 2 * border == dilation * less
        for (border, less), dilation in zip(margins, of.dilation, strict=True)
    )


def shares_weights(candidates: Mapping[str, nn.Module]) -> bool:
    """Whether any two candidates share a parameter."""
    weights = [weight for candidate in candidates.values() for weight in set(candidate.parameters())]
    return len(set(weights)) < len(weights)


def separate(model: nn.Module) -> nn.Module:
    """Gives every `CentreConv2d` a kernel of its own, in place. Returns the model."""
    if isinstance(model, CentreConv2d):
        return model.separate()
    for path, part in list(model.named_modules()):
        if isinstance(part, CentreConv2d):
            model.set_submodule(path, part.separate())
    return model
