"""Derivers: architecture parameters -> the choices of a genotype."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from nas.arch import ArchParams
from nas.errors import ConfigError, SpaceError


class Deriver(Protocol):
    """Decides every choice: key -> candidate name, or None for an edge that is dropped."""

    def __call__(self, arch: ArchParams) -> dict[str, str | None]: ...


def best(probs: Mapping[str, float], exclude: Sequence[str]) -> tuple[str, float]:
    """The most probable candidate that is not excluded; of equals the one that comes first."""
    allowed = {name: p for name, p in probs.items() if name not in exclude}
    if not allowed:
        raise ConfigError(
            f"deriver.exclude leaves none of the candidates {', '.join(probs)}", fix="exclude fewer operations"
        )
    name = max(allowed, key=allowed.__getitem__)
    return name, allowed[name]


class Argmax:
    """The most probable candidate of every choice.

    exclude: candidates that are never derived. NAS-Bench-201 allows ``none``, so nothing is excluded by default.
    """

    def __init__(self, *, exclude: Sequence[str] = ()) -> None:
        self.exclude = tuple(exclude)

    def __call__(self, arch: ArchParams) -> dict[str, str | None]:
        return {key: best(probs, self.exclude)[0] for key, probs in arch.named_probs().items()}


class TopPredecessors:
    """The best operation of every edge first, then the best `count` edges of every group; the rest is dropped.

    That is DARTS' derivation (Liu et al. 2019, sec. 2.4): an edge is as strong as its best operation that is not
    excluded, its probability taken over all operations. Each predecessor has one edge into a node, so the edges
    kept come from different predecessors. Choices without a group are all kept.
    """

    def __init__(self, *, count: int = 2, exclude: Sequence[str] = ("none",)) -> None:
        if count < 1:
            raise ConfigError(f"deriver.count must be at least 1, got {count}", fix="set deriver.count=2")
        self.count = count
        self.exclude = tuple(exclude)

    def __call__(self, arch: ArchParams) -> dict[str, str | None]:
        strongest = {key: best(probs, self.exclude) for key, probs in arch.named_probs().items()}
        members: dict[str, list[str]] = {}
        for key, group in arch.groups.items():
            if group is not None:
                members.setdefault(group, []).append(key)
        if not members:
            raise SpaceError(
                "top-predecessor derivation needs choices that compete in groups, got a space without any",
                fix="use deriver=argmax for this space",
            )
        chosen: dict[str, str | None] = {key: name for key, (name, _) in strongest.items()}
        for edges in members.values():
            # sorted() is stable, so of equally strong edges the earlier predecessor stays.
            for key in sorted(edges, key=lambda key: -strongest[key][1])[self.count :]:
                chosen[key] = None
        return chosen
