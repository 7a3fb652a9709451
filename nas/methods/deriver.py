"""Derivers: architecture parameters -> the choices of a genotype."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from nas.errors import ConfigError, SpaceError
from nas.methods.supernet_score import Judge
from nas.supernet.arch_params import ArchParams


class Deriver(Protocol):
    """Decides every choice from the logits: key -> candidate name, or None for an edge that is dropped.

    Cheap: it is called after every epoch.
    """

    def __call__(self, arch: ArchParams) -> dict[str, str | None]: ...


@runtime_checkable
class JudgingDeriver(Deriver, Protocol):
    """A deriver that looks at data, which costs too much for every epoch: `judged` decides once, after the last one.

    Until then the architecture that is logged and saved is what it derives from the logits alone, as any `Deriver`.
    batches: how many its judge shall look at, None for all.
    """

    @property
    def batches(self) -> int | None: ...

    def judged(self, arch: ArchParams, judge: Judge) -> dict[str, str | None]: ...


def allowed(probs: Mapping[str, float], exclude: Sequence[str]) -> dict[str, float]:
    """The candidates that are not excluded. Raises ConfigError if there are none."""
    remaining = {name: p for name, p in probs.items() if name not in exclude}
    if not remaining:
        raise ConfigError(
            f"deriver.exclude leaves none of the candidates {', '.join(probs)}", fix="exclude fewer operations"
        )
    return remaining


def best(probs: Mapping[str, float], exclude: Sequence[str]) -> tuple[str, float]:
    """The most probable candidate that is not excluded; of equals the one that comes first."""
    remaining = allowed(probs, exclude)
    name = max(remaining, key=remaining.__getitem__)
    return name, remaining[name]


def groups(arch: ArchParams) -> dict[str, list[str]]:
    """group -> the keys that compete in it. Raises SpaceError if there is no group."""
    members: dict[str, list[str]] = {}
    for key, group in arch.groups.items():
        if group is not None:
            members.setdefault(group, []).append(key)
    if not members:
        raise SpaceError(
            "keeping the strongest edges of a group needs choices that compete in groups, got a space without any",
            fix="use deriver=argmax for this space, or keep=every_edge",
        )
    return members


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
    excluded, its probability taken over all operations, and as PC-DARTS has it times its share where edges are weighed.
    Each predecessor has one edge into a node, so the edges kept come from different predecessors. Choices without a
    group are all kept.
    """

    def __init__(self, *, count: int = 2, exclude: Sequence[str] = ("none",)) -> None:
        if count < 1:
            raise ConfigError(f"deriver.count must be at least 1, got {count}", fix="set deriver.count=2")
        self.count = count
        self.exclude = tuple(exclude)

    def __call__(self, arch: ArchParams) -> dict[str, str | None]:
        found, shares = (
            {key: best(probs, self.exclude) for key, probs in arch.named_probs().items()},
            arch.named_shares(),
        )
        chosen: dict[str, str | None] = {key: name for key, (name, _) in found.items()}
        strength = {key: p * shares[key] for key, (_, p) in found.items()}
        for edges in groups(arch).values():
            # sorted() is stable, so of equally strong edges the earlier predecessor stays.
            for key in sorted(edges, key=lambda key: -strength[key])[self.count :]:
                chosen[key] = None
        return chosen


def from_logits(*, count: int | None, exclude: Sequence[str]) -> Deriver:
    """What decides by the logits alone where every group keeps `count` edges, or all of them (None)."""
    return Argmax(exclude=exclude) if count is None else TopPredecessors(count=count, exclude=exclude)
