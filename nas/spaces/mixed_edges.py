"""The edges of a supernet's cells: choices between operations, whole or in a part of the channels."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.spaces.edge_ops import candidates, check_ops
from nas.spaces.ops import Operation
from nas.spaces.space import Space, at_least
from nas.supernet.choice import Choice


class PartialEdge(nn.Module):
    """An edge that searches in one part of its channels and passes the others by (PC-DARTS, Xu et al. 2020).

    choice: one whose outputs are added up (`added`), so that an edge that is left out is the number 0 as a whole.

    (N, C, H, W) -> (N, C, H / stride, W / stride), C a multiple of `parts`: the first C / parts channels go through the
    choice, the rest is copied, or max pooled where the stride is 2. The two are shuffled, so that the next edge
    searches in others. It takes 1 / parts of the memory and time of the candidates.
    """

    def __init__(self, choice: Choice, *, parts: int, stride: int) -> None:
        super().__init__()
        choice.added = True  # zeros would be joined with what passes by; the edge as a whole is left out
        self.choice: nn.Module = choice
        self.parts = parts
        # ceil_mode: an odd resolution is halved as the candidates halve it.
        self.bypass = nn.Identity() if stride == 1 else nn.MaxPool2d(stride, stride, ceil_mode=True)
        self.shuffle = nn.ChannelShuffle(parts)

    def forward(self, x: Tensor) -> Tensor | int:
        width = x.shape[1] // self.parts
        searched: Tensor | int = self.choice(x[:, :width])
        if isinstance(searched, int):  # the edge is left out
            return searched
        passed_by = self.bypass(x[:, width:])
        if isinstance(self.choice, Choice) and (share := self.choice.share) is not None:
            passed_by = share * passed_by
        return self.shuffle(torch.cat([searched, passed_by], dim=1))


@dataclass(frozen=True, kw_only=True)
class MixedEdges:
    """Makes the edges of a supernet's cells, all in one manner.

    affine: of the operations' batch norms. partial_channels: search in 1 / partial_channels of the channels, see
    `PartialEdge`. edge_normalisation: weigh the edges into a node by shares that are learnt, see `Choice`.
    """

    ops: Mapping[str, Operation]
    affine: bool
    partial_channels: int = 1
    edge_normalisation: bool = False

    def edge(self, kind: str, source: int, node: int, *, channels: int, stride: int) -> nn.Module:
        """The choice on the edge source -> node of a kind of cell ("normal", "reduce", ...).

        Its key names the kind but not the cell: all cells of a kind share their logits, and a genotype fits networks of
        any depth. Edges into one node form a group. Raises ConfigError for channels that cannot be split.
        """
        key, parts = f"{kind}/{source}-{node}", self.partial_channels
        if channels % parts:
            raise ConfigError(
                f"space.partial_channels must divide the channels of every cell, got {parts} for {channels} channels",
                fix=f"set space.channels to a multiple of {parts}, or space.partial_channels=1",
            )
        choice = Choice(
            candidates(self.ops, key, channels // parts, channels // parts, stride, self.affine),
            key=key,
            group=f"{kind}/{node}",
            weighed=self.edge_normalisation,
            added=True,
        )
        return choice if parts == 1 else PartialEdge(choice, parts=parts, stride=stride)


@dataclass(frozen=True, kw_only=True)
class CellSpace(Space):
    """What the spaces of cells have in common.

    partial_channels, edge_normalisation: of the supernet alone, see `MixedEdges`; 4 and True in PC-DARTS. A network
    that is retrained has whole edges of equal weight.
    """

    ops: Mapping[str, Operation]
    partial_channels: int = 1
    edge_normalisation: bool = False

    def __post_init__(self) -> None:
        check_ops(self.ops)
        at_least(1, partial_channels=self.partial_channels)

    def edges(self, *, affine: bool) -> MixedEdges:
        """affine: as in `build`."""
        if affine:
            return MixedEdges(ops=self.ops, affine=True)
        return MixedEdges(
            ops=self.ops,
            affine=False,
            partial_channels=self.partial_channels,
            edge_normalisation=self.edge_normalisation,
        )
