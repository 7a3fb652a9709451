"""The edges of a supernet's cells: choices between operations, on all channels or on a part of the channels."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.runtime.user_functions import plain_partial
from nas.spaces.edge_ops import EdgeOps, candidates, check_ops
from nas.spaces.ops import Operation
from nas.spaces.space import Space, at_least
from nas.supernet.choice import Choice
from nas.supernet.entanglement import entangle, shares_weights


class PartialEdge(nn.Module):
    """An edge whose choice sees one part of the channels; the other channels bypass it (PC-DARTS, Xu et al. 2020).

    choice: the choice. Its `added` is set to True, so that an edge that is left out is the number 0 as a whole.

    (N, C, H, W) -> (N, C, H / stride, W / stride), where C is a multiple of `parts`. The first C / parts channels go
    through the choice. The other channels are copied at stride 1, and max pooled at stride 2. All channels are
    shuffled, so that the next edge searches in other channels. The candidates take 1 / parts of the memory and time.
    """

    def __init__(self, choice: Choice, *, parts: int, stride: int) -> None:
        super().__init__()
        choice.added = True  # a tensor of zeros would be joined with the bypass, but the whole edge is left out
        self.choice: nn.Module = choice
        self.parts = parts
        # ceil_mode: halves an odd resolution as the candidates do.
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
    """Makes the edges of a supernet's cells.

    affine: whether the operations' batch norms are affine. partial_channels: search in 1 / partial_channels of the
    channels, see `PartialEdge`. edge_normalisation: weigh the edges into a node by learnt shares, see `Choice`.
    entangled: let the candidates of an edge share kernels, see `nas.supernet.entanglement`.
    """

    ops: Mapping[str, Operation]
    affine: bool
    partial_channels: int = 1
    edge_normalisation: bool = False
    entangled: bool = False

    def edge(self, kind: str, source: int, node: int, *, channels: int, stride: int) -> nn.Module:
        """Builds the choice on the edge source -> node of a kind of cell ("normal", "reduce", ...).

        The key names the kind of cell, not the cell. So all cells of a kind share their logits, and a genotype fits
        networks of any depth. Edges into one node form a group. Raises ConfigError if `partial_channels` does not
        divide the channels.
        """
        key, parts = f"{kind}/{source}-{node}", self.partial_channels
        if channels % parts:
            raise ConfigError(
                f"space.partial_channels must divide the channels of every cell, got {parts} for {channels} channels",
                fix=f"set space.channels to a multiple of {parts}, or space.partial_channels=1",
            )
        offered = candidates(self.ops, key, channels // parts, channels // parts, stride, self.affine)
        choice = Choice(
            entangle(offered) if self.entangled else offered,
            key=key,
            group=f"{kind}/{node}",
            weighed=self.edge_normalisation,
            added=True,
        )
        return choice if parts == 1 else PartialEdge(choice, parts=parts, stride=stride)


@dataclass(frozen=True, kw_only=True)
class CellSpace(Space):
    """The base class of cell-based spaces.

    channels: of the first cells. partial_channels, edge_normalisation, entangled: see `MixedEdges`; 4 and True in
    PC-DARTS. They apply to the supernet only: in a retrained network an edge has all channels, all edges have equal
    weight, and every convolution has its own kernel. Raises ConfigError for `entangled` if no two operations can share
    a kernel.
    """

    on_meta = True

    ops: Mapping[str, Operation]
    channels: int = 16
    partial_channels: int = 1
    edge_normalisation: bool = False
    entangled: bool = False

    def __post_init__(self) -> None:
        check_ops(self.ops)
        at_least(1, channels=self.channels, partial_channels=self.partial_channels)
        if self.entangled and not self._can_share():
            raise ConfigError(
                f"space.entangled=true shares kernels between operations, but none of {', '.join(self.ops)} can share",
                fix="leave space.entangled=false, or add an operation of the same kind with another kernel size",
            )

    def edges(self, *, affine: bool) -> MixedEdges:
        """The factory of the edges. affine: as in `build`."""
        if affine:
            return MixedEdges(ops=self.ops, affine=True)
        return MixedEdges(
            ops=self.ops,
            affine=False,
            partial_channels=self.partial_channels,
            edge_normalisation=self.edge_normalisation,
            entangled=self.entangled,
        )

    def _can_share(self) -> bool:
        edges = map(self.ops.at, self.ops.edges) if isinstance(self.ops, EdgeOps) else [self.ops]
        width = max(1, self.channels // self.partial_channels)
        with torch.device("meta"):
            made = [{name: plain_partial(op)(width, width, 1, False) for name, op in edge.items()} for edge in edges]
        return any(shares_weights(entangle(edge)) for edge in made)
