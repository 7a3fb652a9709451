"""Derivers choose the candidates of a genotype from the architecture parameters."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from nas.errors import ConfigError, NasError, SpaceError, described
from nas.methods.supernet_score import Judge
from nas.supernet.arch_params import ArchParams


class Deriver(Protocol):
    """Decides every choice from the logits. Returns key -> candidate name, or None for a dropped edge.

    The search calls a deriver after every epoch, so the call must be cheap.
    """

    def __call__(self, arch: ArchParams) -> dict[str, str | None]: ...


@runtime_checkable
class JudgingDeriver(Deriver, Protocol):
    """A deriver that also scores architectures on data. `judged` decides once, after the last epoch.

    Scoring costs too much for every epoch. In earlier epochs the search logs and saves the architecture that the
    deriver derives from the logits alone, like any `Deriver`.
    batches: the number of batches that the judge scores on, None for all.
    """

    @property
    def batches(self) -> int | None: ...

    def judged(self, arch: ArchParams, judge: Judge) -> dict[str, str | None]: ...


def tried(deriver: Deriver, arch: ArchParams) -> dict[str, str | None]:
    """Returns what a deriver derives when it is called first. Raises ConfigError if it fails."""
    try:
        return deriver(arch)
    except NasError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the deriver fails ({described(error)})", fix="correct its __call__(arch), or give an object of its class"
        ) from error


def check_excluded(deriver: Deriver, arch: ArchParams) -> None:
    """Raises ConfigError if the deriver excludes a name that no choice has, as a misspelt name would exclude nothing.

    The default exclusion, ``none``, is allowed in every space.
    """
    names = list(dict.fromkeys(name for probs in arch.named_probs().values() for name in probs))
    unknown = [name for name in getattr(deriver, "exclude", None) or () if name not in (*names, "none")]
    if unknown:
        meant = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.3) or names[:1]
        raise ConfigError(
            f"deriver.exclude has {', '.join(unknown)}, which no choice has, expected some of {', '.join(names)}",
            fix=f"set deriver.exclude=[{meant[0]}]",
        )


def allowed(probs: Mapping[str, float], exclude: Sequence[str]) -> dict[str, float]:
    """The candidates that are not excluded. Raises ConfigError if all are excluded."""
    remaining = {name: p for name, p in probs.items() if name not in exclude}
    if not remaining:
        raise ConfigError(
            f"deriver.exclude leaves none of the candidates {', '.join(probs)}", fix="exclude fewer operations"
        )
    return remaining


def best(probs: Mapping[str, float], exclude: Sequence[str]) -> tuple[str, float]:
    """The most probable candidate that is not excluded. The first wins a tie."""
    remaining = allowed(probs, exclude)
    name = max(remaining, key=remaining.__getitem__)
    return name, remaining[name]


def groups(arch: ArchParams) -> dict[str, list[str]]:
    """group -> the keys that compete in the group. Raises SpaceError if no choice has a group."""
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
    """Derives the most probable candidate of every choice.

    exclude: candidates that are never derived. The default excludes nothing, because NAS-Bench-201 allows ``none``.
    """

    def __init__(self, *, exclude: Sequence[str] = ()) -> None:
        self.exclude = tuple(exclude)

    def __call__(self, arch: ArchParams) -> dict[str, str | None]:
        return {key: best(probs, self.exclude)[0] for key, probs in arch.named_probs().items()}


class TopPredecessors:
    """Picks the best operation of every edge, then keeps the best `count` edges of every group. Drops the other edges.

    This is the derivation of DARTS (Liu et al. 2019, sec. 2.4). The strength of an edge is the probability of its best
    operation that is not excluded, taken over all operations. For weighed edges the probability is multiplied by the
    edge's share, as in PC-DARTS. Each predecessor has one edge into a node, so the kept edges come from different
    predecessors. Choices without a group are all kept.
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
            # sorted() is stable, so the earlier predecessor wins a tie.
            for key in sorted(edges, key=lambda key: -strength[key])[self.count :]:
                chosen[key] = None
        return chosen


def from_logits(*, count: int | None, exclude: Sequence[str]) -> Deriver:
    """Keeps the top `count` edges of a group by probability, or all edges if `count` is None."""
    return Argmax(exclude=exclude) if count is None else TopPredecessors(count=count, exclude=exclude)
