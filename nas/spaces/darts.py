"""The DARTS space (Liu et al. 2019): a normal and a reduction cell, stacked into the NASNet skeleton for CIFAR."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas.data.spec import DataSpec
from nas.errors import ConfigError
from nas.spaces import op_sets
from nas.spaces.cell import Cell, ClassifierHead
from nas.spaces.mixed_edges import CellSpace, MixedEdges
from nas.spaces.ops import FactorizedReduce, Operation, ReLUConvBN
from nas.spaces.space import at_least
from nas.supernet.genotype import Genotype


class DartsCell(nn.Module):
    """A cell with two inputs and `steps` nodes. The output is the concatenation of the nodes.

    c_before_last, c_last: the output channels of the two previous cells. channels: the channels of each node.
    """

    def __init__(
        self,
        edges: MixedEdges,
        *,
        steps: int,
        c_before_last: int,
        c_last: int,
        channels: int,
        reduction: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        # If the previous cell is a reduction, the cell before that one has twice its resolution.
        self.preprocess_before_last: nn.Module = (
            FactorizedReduce(c_before_last, channels, edges.affine)
            if after_reduction
            else ReLUConvBN(c_before_last, channels, 1, edges.affine, kernel_size=1)
        )
        self.preprocess_last = ReLUConvBN(c_last, channels, 1, edges.affine, kernel_size=1)
        self.graph = Cell(
            inputs=2,
            nodes=steps,
            edge=lambda source, node: edges.edge(
                "reduce" if reduction else "normal",
                source,
                node,
                channels=channels,
                stride=2 if reduction and source < 2 else 1,
            ),
            outputs=range(2, 2 + steps),
        )

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        return torch.cat(self.graph([self.preprocess_before_last(before_last), self.preprocess_last(last)]), dim=1)


class AuxiliaryHead(nn.Sequential):
    """A second classifier at two thirds of the depth, for training only: (N, C, >= 8, >= 8) -> (N, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3, padding=0, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),  # its input is one pixel for CIFAR's 32x32
            nn.Flatten(),
            nn.Linear(768, classes),
        )


def auxiliary_heads(network: nn.Module) -> dict[str, nn.Module]:
    """Returns name -> head, of a network or supernet: an export leaves it out, and sizes do not count it."""
    return {name: child for name, child in network.named_children() if isinstance(child, AuxiliaryHead)}


@dataclass(frozen=True, kw_only=True)
class Stem:
    """first: gives the first input of the first cell, and to_last the second one from it, of `channels` channels both;
    reduces: whether to_last halves the resolution."""

    first: nn.Module
    to_last: nn.Module
    channels: int
    reduces: bool


class DartsNetwork(nn.Module):
    """Stem, `cells` cells and head. The cells at 1/3 and 2/3 of the depth are reductions.

    auxiliary: makes a second classifier for the channels at two thirds of the depth, None for none.
    final_norm: whether a batch norm and a ReLU follow the last cell, as in GDAS' NASNet skeleton.
    Returns (N, classes) scores; in training mode with an auxiliary head the pair (scores, auxiliary scores).
    """

    def __init__(
        self,
        edges: MixedEdges,
        stem: Stem,
        *,
        classes: int,
        channels: int,
        cells: int,
        steps: int,
        auxiliary: Callable[[int], nn.Module] | None,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        self.stem = stem.first
        self.to_last = stem.to_last
        self.cells = nn.ModuleList()
        self.auxiliary_at = 2 * cells // 3
        self.auxiliary: nn.Module | None = None
        c_before_last, c_last, after_reduction = stem.channels, stem.channels, stem.reduces
        for index in range(cells):
            reduction = index in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduction else 1
            self.cells.append(
                DartsCell(
                    edges,
                    steps=steps,
                    c_before_last=c_before_last,
                    c_last=c_last,
                    channels=channels,
                    reduction=reduction,
                    after_reduction=after_reduction,
                )
            )
            c_before_last, c_last, after_reduction = c_last, steps * channels, reduction
            if auxiliary is not None and index == self.auxiliary_at:
                self.auxiliary = auxiliary(c_last)
        self.final: nn.Module | None = nn.Sequential(nn.BatchNorm2d(c_last), nn.ReLU()) if final_norm else None
        self.head = ClassifierHead(c_last, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        before_last = self.stem(x)
        last = self.to_last(before_last)
        auxiliary_scores: Tensor | None = None
        for index, cell in enumerate(self.cells):
            before_last, last = last, cell(before_last, last)
            if self.training and self.auxiliary is not None and index == self.auxiliary_at:
                auxiliary_scores = self.auxiliary(last)
        scores: Tensor = self.head(last if self.final is None else self.final(last))
        return scores if auxiliary_scores is None else (scores, auxiliary_scores)


@dataclass(frozen=True, kw_only=True)
class Darts(CellSpace):
    """The DARTS space in the skeleton for CIFAR.

    channels, cells: 16 and 8 in the published search, 36 and 20 in retraining. steps: computed nodes of a cell.
    auxiliary: add the auxiliary head, whose loss retraining weights by retrain.auxiliary_weight.
    final_norm: add a batch norm and a ReLU after the last cell, as GDAS' NASNet skeleton has (DARTS has neither).
    The search includes ``none`` but never derives it, and a node keeps two edges: see configs/keep/two_edges.yaml.
    """

    name = "darts"
    ops: Mapping[str, Operation] = field(default_factory=op_sets.darts)
    cells: int = 8
    steps: int = 4
    stem_multiplier: int = 3
    auxiliary: bool = False
    final_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, steps=self.steps, stem_multiplier=self.stem_multiplier)
        at_least(3, cells=self.cells)  # fewer cells have no place for two reductions

    def build(self, spec: DataSpec, *, affine: bool) -> DartsNetwork:
        if self.auxiliary:
            check_size(spec, least=32)
        c_stem = self.stem_multiplier * self.channels
        return DartsNetwork(
            self.edges(affine=affine),
            Stem(
                first=nn.Sequential(nn.Conv2d(spec.channels, c_stem, 3, padding=1, bias=False), nn.BatchNorm2d(c_stem)),
                to_last=nn.Identity(),
                channels=c_stem,
                reduces=False,
            ),
            classes=spec.num_classes,
            channels=self.channels,
            cells=self.cells,
            steps=self.steps,
            auxiliary=functools.partial(AuxiliaryHead, classes=spec.num_classes) if self.auxiliary else None,
            final_norm=self.final_norm,
        )


def check_size(spec: DataSpec, *, least: int) -> None:
    """Raises ConfigError if the images are smaller than `least` pixels, which the auxiliary head needs."""
    if min(spec.height, spec.width) < least:
        raise ConfigError(
            f"the auxiliary head needs images of at least {least}x{least}, got {spec.height}x{spec.width}",
            fix="set retrain.network.auxiliary=false",
        )


def published(normal: list[tuple[str, int]], reduce: list[tuple[str, int]]) -> Genotype:
    """A genotype from the published notation: two (operation, source) pairs per node, starting at node 2."""
    chosen: dict[str, str | None] = {}
    for kind, entries in (("normal", normal), ("reduce", reduce)):
        for node in range(2, 2 + len(entries) // 2):
            kept = {source: op for op, source in entries[2 * (node - 2) : 2 * (node - 1)]}
            chosen |= {f"{kind}/{source}-{node}": kept.get(source) for source in range(node)}
    return Genotype(Darts.name, chosen)


# The genotypes of the DARTS paper (V1 first order, V2 second order), of GDAS (Dong & Yang 2019) and of PC-DARTS on
# CIFAR-10 (Xu et al. 2020), from their authors' code. Some copies of GDAS_V1 end in sep_conv_5x5 2; the authors'
# genotype ends in sep_conv_5x5 1.
PUBLISHED = {
    "DARTS_V1": published(
        normal=[
            ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 0), ("sep_conv_3x3", 1),
            ("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 2),
        ],
        reduce=[
            ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 0),
            ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("avg_pool_3x3", 0),
        ],
    ),
    "DARTS_V2": published(
        normal=[
            ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2),
        ],
        reduce=[
            ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1),
            ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1),
        ],
    ),
    "GDAS_V1": published(
        normal=[
            ("skip_connect", 0), ("skip_connect", 1), ("skip_connect", 0), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 3), ("skip_connect", 0), ("sep_conv_5x5", 4), ("sep_conv_3x3", 3),
        ],
        reduce=[
            ("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("sep_conv_5x5", 2), ("sep_conv_5x5", 1),
            ("dil_conv_5x5", 2), ("sep_conv_3x3", 1), ("sep_conv_5x5", 0), ("sep_conv_5x5", 1),
        ],
    ),
    "PCDARTS": published(
        normal=[
            ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),
            ("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("avg_pool_3x3", 0), ("dil_conv_3x3", 1),
        ],
        reduce=[
            ("sep_conv_5x5", 1), ("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 0), ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("sep_conv_3x3", 2),
        ],
    ),
}  # fmt: skip
