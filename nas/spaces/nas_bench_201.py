"""The NAS-Bench-201 space (Dong & Yang 2020): one cell of 4 nodes and 5 operations, 15,625 architectures."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from nas.data.spec import DataSpec
from nas.spaces import op_sets
from nas.spaces.cell import Cell, ClassifierHead
from nas.spaces.mixed_edges import CellSpace, MixedEdges
from nas.spaces.ops import Operation, ReLUConvBN
from nas.spaces.space import at_least


class NasBench201Cell(nn.Module):
    """A cell whose output is its last node: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, edges: MixedEdges, *, channels: int, nodes: int) -> None:
        super().__init__()
        self.graph = Cell(
            inputs=1,
            nodes=nodes - 1,
            edge=lambda source, node: edges.edge("cell", source, node, channels=channels, stride=1),
            outputs=[nodes - 1],
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.graph([x])[0]


class ResidualReduction(nn.Module):
    """The basic residual block between stages. Halves the resolution; contains no choice."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            ReLUConvBN(c_in, c_out, 2, True, kernel_size=3), ReLUConvBN(c_out, c_out, 1, True, kernel_size=3)
        )
        # ceil_mode differs from the published block only for odd resolutions, which CIFAR never has.
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(c_in, c_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.convs(x)


class NasBench201Network(nn.Module):
    """Stem, three stages of `cells` cells, and head. Residual reductions connect the stages."""

    def __init__(self, edges: MixedEdges, spec: DataSpec, *, channels: int, cells: int, nodes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(spec.channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        body: list[nn.Module] = []
        for stage in range(3):
            width = channels << stage
            if stage > 0:
                body.append(ResidualReduction(width // 2, width))
            body += [NasBench201Cell(edges, channels=width, nodes=nodes) for _ in range(cells)]
        self.body = nn.Sequential(*body)
        self.norm = nn.BatchNorm2d(4 * channels)
        self.head = ClassifierHead(4 * channels, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.body(self.stem(x)))))


@dataclass(frozen=True, kw_only=True)
class NasBench201(CellSpace):
    """The NAS-Bench-201 space.

    channels: channels of the first stage (16 published). cells: cells per stage (5 published). nodes: nodes per cell
    (4 published). The genotype may keep ``none``, as the benchmark has such cells. Every edge is kept.
    """

    name = "nas_bench_201"
    ops: Mapping[str, Operation] = field(default_factory=op_sets.nas_bench_201)
    cells: int = 5
    nodes: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, cells=self.cells)
        at_least(2, nodes=self.nodes)

    def build(self, spec: DataSpec, *, affine: bool) -> NasBench201Network:
        return NasBench201Network(
            self.edges(affine=affine), spec, channels=self.channels, cells=self.cells, nodes=self.nodes
        )
