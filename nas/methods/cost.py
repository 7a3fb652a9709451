"""The cost of an architecture's network as a function of the drawn candidates: exact, expected, lowest and highest."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.errors import SpaceError
from nas.supernet.arch_params import ArchParams
from nas.supernet.every_candidate import Condition

LARGEST_TABLE = 10_000_000  # combinations of choices whose costs depend on each other


@dataclass(frozen=True)
class Cost:
    """A sum of terms. An architecture pays the terms whose conditions it meets.

    terms: condition -> cost; every architecture pays the term of the empty condition. A candidate inside another
    candidate has the condition that both are drawn. Choices with the same key are drawn together, so each key occurs
    once in a condition.
    """

    terms: Mapping[Condition, float]

    def of(self, chosen: Mapping[str, str | None]) -> float:
        """The cost of one architecture. A dropped edge (None) meets no condition."""
        return sum(cost for condition, cost in self.terms.items() if condition <= chosen.items())

    def reachable(self, options: Mapping[str, Sequence[str]]) -> tuple[float, float]:
        """The lowest and the highest cost of an architecture. options: choice key -> candidates, which may be some of
        all: what other candidates, and choices without an entry, cost is then left out."""
        return self._extreme(options, torch.amin), self._extreme(options, torch.amax)

    def _extreme(self, options: Mapping[str, Sequence[str]], pick: Callable[[Tensor, int], Tensor]) -> float:
        # Variable elimination decides the choices one after the other, each for every combination of the choices that
        # it interacts with. Only nested choices interact.
        total = self.terms.get(frozenset(), 0.0)
        # Choices, and the costs of all combinations of their candidates.
        tables: list[tuple[tuple[str, ...], Tensor]] = []
        for condition, cost in self.terms.items():
            if condition and all(name in options.get(key, ()) for key, name in condition):
                keys, names = zip(*sorted(condition), strict=True)
                table = zeros(options, keys)
                table[tuple(options[key].index(name) for key, name in zip(keys, names, strict=True))] = cost
                tables.append((keys, table))
        undecided = {key for keys, _ in tables for key in keys}
        while undecided:
            together = {key: sorted({k for keys, _ in tables if key in keys for k in keys}) for key in undecided}
            sizes = {key: math.prod(len(options[k]) for k in together[key]) for key in sorted(undecided)}
            decided = min(sizes, key=sizes.__getitem__)
            axes = together[decided]
            if sizes[decided] > LARGEST_TABLE:
                raise SpaceError(
                    f"the cost of {len(axes)} choices, {decided} among them, depends on all of them "
                    f"together, expected at most {LARGEST_TABLE:,} combinations, got {sizes[decided]:,}",
                    fix="nest fewer choices in one another, or leave the cost out of the regularisers",
                )
            joint = zeros(options, axes)
            for keys, table in tables:
                if decided in keys:
                    joint += table[tuple(slice(None) if key in keys else None for key in axes)]
            best = pick(joint, axes.index(decided))
            tables = [(keys, table) for keys, table in tables if decided not in keys]
            if len(axes) > 1:
                tables.append((tuple(key for key in axes if key != decided), best))
            else:
                total += float(best)
            undecided.remove(decided)
        return total


def zeros(options: Mapping[str, Sequence[str]], keys: Sequence[str]) -> Tensor:
    """Returns a table with an axis for each choice, and an entry for each combination of their candidates."""
    return torch.zeros([len(options[key]) for key in keys], dtype=torch.float64)


class Expectation:
    """The expected cost of an architecture whose choices are drawn independently, each by its probabilities.

    cost: the cost of the network. arch: gives the keys and the device; its choices may cost nothing.
    Raises SpaceError if the cost names candidates that `arch` does not have.
    """

    def __init__(self, cost: Cost, arch: ArchParams) -> None:
        rows = {key: row for row, key in enumerate(arch.keys)}
        widest = arch.mask.shape[1]
        one = arch.mask.numel()  # the index of a 1 after the probabilities, which pads shorter conditions

        def position(key: str, name: str) -> int:
            if key not in rows or name not in arch.candidates[key]:
                raise SpaceError(
                    f"the retrained network has the candidate {name!r} at {key}, which the supernet does not have",
                    fix="let retrain.network change sizes only, not the choices",
                )
            return rows[key] * widest + arch.candidates[key].index(name)

        found = [[position(key, name) for key, name in condition] for condition in cost.terms]
        index = list(itertools.zip_longest(*found, fillvalue=one)) or [(one,) * len(found)]
        self._index = torch.tensor(index, device=arch.mask.device).T  # (terms, longest condition)
        self._costs = torch.tensor(list(cost.terms.values()), device=arch.mask.device, dtype=arch.logits.dtype)

    def __call__(self, probs: Tensor) -> Tensor:
        """The expected cost: a scalar, differentiable in `probs`. probs: (choices, widest), rows as in `arch`."""
        padded = torch.cat([probs.flatten(), probs.new_ones(1)])
        return (padded[self._index].prod(dim=-1) * self._costs).sum()
