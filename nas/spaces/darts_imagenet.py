"""The DARTS space in the skeleton for ImageNet (Liu et al. 2019, sec. 3.4).

The resolution is reduced to an eighth before the first cell. The genotypes are the same as in the skeleton for CIFAR,
so this skeleton can train a cell that was found on CIFAR.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from nas.data.spec import DataSpec
from nas.errors import ConfigError
from nas.spaces import op_sets
from nas.spaces.darts import AuxiliaryHead, Darts, DartsNetwork, Stem, check_size
from nas.spaces.mixed_edges import CellSpace
from nas.spaces.ops import Operation
from nas.spaces.space import at_least

LEAST_SIZE = 193  # pixels; the last cells see 7x7 pixels then, as with the published 224


class ImageNetAuxiliaryHead(AuxiliaryHead):
    """A second classifier at two thirds of the depth, for training only: (N, C, >= 7, >= 7) -> (N, classes).

    The last convolution has no batch norm after it, as published.
    """

    def __init__(self, channels: int, classes: int) -> None:
        nn.Sequential.__init__(
            self,
            nn.ReLU(),
            nn.AvgPool2d(5, stride=2, padding=0, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),  # its input is one pixel for the published 224x224
            nn.Flatten(),
            nn.Linear(768, classes),
        )


@dataclass(frozen=True, kw_only=True)
class DartsImageNet(CellSpace):
    """The DARTS space in the skeleton for ImageNet.

    channels, cells: 48 and 14 as published; channels must be even. steps: computed nodes of a cell.
    auxiliary: add the auxiliary head, whose loss retraining weights by retrain.auxiliary_weight.
    """

    name = Darts.name
    ops: Mapping[str, Operation] = field(default_factory=op_sets.darts)
    channels: int = 48
    cells: int = 14
    steps: int = 4
    auxiliary: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(2, channels=self.channels)
        at_least(1, steps=self.steps)
        at_least(3, cells=self.cells)  # fewer cells have no place for two reductions
        if self.channels % 2:
            raise ConfigError(
                f"space.channels must be even, as the first convolution has half of the channels, got {self.channels}",
                fix=f"set space.channels={self.channels + 1}",
            )

    def build(self, spec: DataSpec, *, affine: bool) -> DartsNetwork:
        if self.auxiliary:
            check_size(spec, least=LEAST_SIZE)
        half, whole = self.channels // 2, self.channels
        return DartsNetwork(
            self.edges(affine=affine),
            Stem(
                first=nn.Sequential(
                    nn.Conv2d(spec.channels, half, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(half),
                    nn.ReLU(),
                    nn.Conv2d(half, whole, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(whole),
                ),
                to_last=nn.Sequential(
                    nn.ReLU(),
                    nn.Conv2d(whole, whole, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(whole),
                ),
                channels=whole,
                reduces=True,
            ),
            classes=spec.num_classes,
            channels=self.channels,
            cells=self.cells,
            steps=self.steps,
            auxiliary=functools.partial(ImageNetAuxiliaryHead, classes=spec.num_classes) if self.auxiliary else None,
        )
