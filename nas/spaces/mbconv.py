"""The MBConv space of ProxylessNAS (Cai et al. 2019): a chain of MobileNetV2 blocks with one choice per layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.data.spec import DataSpec
from nas.errors import ConfigError
from nas.spaces import op_sets
from nas.spaces.cell import ClassifierHead
from nas.spaces.edge_ops import candidates, check_ops
from nas.spaces.ops import InvertedResidual, Operation, conv_bn_relu6
from nas.spaces.space import Space, at_least
from nas.supernet.choice import Choice


class MBConvNetwork(nn.Module):
    """Stem, one fixed block, the searched layers, a 1x1 convolution, head: (N, C, H, W) -> (N, classes)."""

    def __init__(self, stem: nn.Module, layers: Sequence[nn.Module], tail: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.layers = nn.Sequential(*layers)
        self.tail = tail
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tail(self.layers(self.stem(x))))


@dataclass(frozen=True, kw_only=True)
class MBConv(Space):
    """Stages of layers. The first layer of a stage changes the resolution and the width.

    ops: the candidate blocks. skip: whether layers that keep the shape also have the candidate ``skip_connect``, which
    leaves the layer out. stem, stem_stride: channels and stride of the first convolution. first: channels of the fixed
    block after the stem. widths, depths, strides: one value per stage. head: channels before the classifier.

    The residual connection belongs to the candidates, as in MobileNetV2, so a layer that is left out is the identity.
    ProxylessNAS adds the residual outside of the choice: the same function, as the gates of a choice sum to 1.
    The defaults are the widths and depths of the ProxylessNAS network for ImageNet. The first two of its five
    halvings of the resolution are left out, so that images of 32x32 end in 4x4.
    Sources: Cai et al. 2019, sec. 4.2; Sandler et al. 2018 (MobileNetV2), table 2.
    """

    name = "mbconv"
    on_meta = True
    ops: Mapping[str, Operation] = field(default_factory=op_sets.mbconv)
    stem: int = 32
    stem_stride: int = 1
    first: int = 16
    widths: Sequence[int] = (24, 40, 80, 96, 192, 320)
    depths: Sequence[int] = (4, 4, 4, 4, 4, 1)
    strides: Sequence[int] = (1, 2, 2, 1, 2, 1)
    head: int = 1280
    skip: bool = True

    def __post_init__(self) -> None:
        check_ops(self.ops)
        at_least(1, stem=self.stem, stem_stride=self.stem_stride, first=self.first, head=self.head)
        stages = {name: list(getattr(self, name)) for name in ("widths", "depths", "strides")}
        if len({len(values) for values in stages.values()}) != 1 or not stages["widths"]:
            raise ConfigError(
                f"space.widths, depths and strides must have a value for each stage, got {stages}",
                fix="give the three the same length, e.g. space.widths=[24,40] space.depths=[2,2] space.strides=[1,2]",
            )
        for name, values in stages.items():
            at_least(1, **{f"{name}[{stage}]": value for stage, value in enumerate(values)})

    def build(self, spec: DataSpec, *, affine: bool) -> MBConvNetwork:
        stem = nn.Sequential(
            *conv_bn_relu6(spec.channels, self.stem, kernel_size=3, stride=self.stem_stride),
            InvertedResidual(self.stem, self.first, 1, True, kernel_size=3, expansion=1),
        )
        layers: list[nn.Module] = []
        channels = self.first
        for stage, (width, depth, stride) in enumerate(zip(self.widths, self.depths, self.strides, strict=True)):
            for layer in range(depth):
                key = f"stage{stage}/layer{layer}"
                layers.append(self._layer(key, channels, width, stride if layer == 0 else 1, affine))
                channels = width
        tail = nn.Sequential(*conv_bn_relu6(channels, self.head))
        return MBConvNetwork(stem, layers, tail, ClassifierHead(self.head, spec.num_classes))

    def _layer(self, key: str, c_in: int, c_out: int, stride: int, affine: bool) -> Choice:
        blocks = candidates(self.ops, key, c_in, c_out, stride, affine)
        if self.skip and stride == 1 and c_in == c_out:
            blocks["skip_connect"] = nn.Identity()
        return Choice(blocks, key=key)
