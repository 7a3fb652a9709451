"""Sets of operations in which each edge has its own candidates, as in the S1 space of Zela et al. 2020."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from nas.errors import ConfigError, SpaceError
from nas.runtime.user_functions import plain_partial
from nas.spaces.ops import Operation


class EdgeOps(Mapping[str, Operation]):
    """The operations of a space, and for each choice the names of its candidates.

    ops: name -> operation. edges: choice key -> the names of its candidates, in their order.
    Raises SpaceError if a candidate is not among the operations.
    """

    def __init__(self, *, ops: Mapping[str, Operation], edges: Mapping[str, Sequence[str]]) -> None:
        self.edges = {key: tuple(names) for key, names in edges.items()}
        self._ops = dict(ops)
        for key, names in self.edges.items():
            if unknown := [name for name in names if name not in ops]:
                raise SpaceError(
                    f"ops.edges offers {', '.join(unknown)} at {key}, expected some of {', '.join(ops)}",
                    fix="add the operation to ops.ops, or correct the name",
                )

    def __getitem__(self, name: str) -> Operation:
        return self._ops[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ops)

    def __len__(self) -> int:
        return len(self._ops)

    def described(self) -> dict[str, object]:
        """The constructor's arguments by name."""
        return {"ops": self._ops, "edges": self.edges}

    def at(self, key: str) -> dict[str, Operation]:
        """The candidates of one choice. Raises SpaceError if `edges` does not have the choice."""
        if key not in self.edges:
            raise SpaceError(
                f"the chosen ops have no candidates for {key}, only for {', '.join(self.edges)}",
                fix="use the space and size that the ops were published for, e.g. space=darts space.steps=4",
            )
        return {name: self._ops[name] for name in self.edges[key]}


def check_ops(ops: object) -> None:
    """Raises ConfigError unless `ops` are operations by name, whatever a configuration said."""
    if not isinstance(ops, Mapping) or not all(map(callable, ops.values())):
        raise ConfigError(
            f"space.ops is {ops!r}, expected operations by name",
            fix="choose a group of operations on the command line, e.g. ops=darts; in Python, give a dict",
        )


def candidates(
    ops: Mapping[str, Operation], key: str, c_in: int, c_out: int, stride: int, affine: bool
) -> dict[str, nn.Module]:
    """Builds the candidates of the choice `key`: all operations, or the operations of this edge for `EdgeOps`."""
    named = ops.at(key) if isinstance(ops, EdgeOps) else ops
    return {name: plain_partial(op)(c_in, c_out, stride, affine) for name, op in named.items()}
