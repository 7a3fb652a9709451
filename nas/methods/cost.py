"""What the network of an architecture costs, as a function of what is drawn: exactly, in expectation, and at the
least and the most."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.errors import SpaceError
from nas.supernet.arch_params import ArchParams
from nas.supernet.every_candidate import Condition

LARGEST_TABLE = 10_000_000  # entries, of choices that have to be decided together


@dataclass(frozen=True)
class Cost:
    """A sum of terms, each paid by the architectures that its condition holds for.

    terms: condition -> cost; that of the empty condition is paid by all. A candidate inside another candidate has
    the condition that both are drawn. Choices that share a key are drawn together, so a key is in a condition once.
    """

    terms: Mapping[Condition, float]

    def of(self, chosen: Mapping[str, str | None]) -> float:
        """The cost of one architecture; None, a dropped edge, meets no condition."""
        return sum(cost for condition, cost in self.terms.items() if condition <= chosen.items())

    def reachable(self, options: Mapping[str, Sequence[str]]) -> tuple[float, float]:
        """The cost of the cheapest and of the dearest architecture. options: choice key -> candidates."""
        return self._extreme(options, torch.amin), self._extreme(options, torch.amax)

    def _extreme(self, options: Mapping[str, Sequence[str]], pick: Callable[[Tensor, int], Tensor]) -> float:
        # Variable elimination: choices are decided one after the other, each for every combination of those it
        # interacts with. Without nesting none do.
        total = self.terms.get(frozenset(), 0.0)
        tables: list[tuple[tuple[str, ...], Tensor]] = []
        for condition, cost in self.terms.items():
            if condition:
                keys, names = zip(*sorted(condition), strict=True)
                table = torch.zeros([len(options[key]) for key in keys], dtype=torch.float64)
                table[tuple(options[key].index(name) for key, name in zip(keys, names, strict=True))] = cost
                tables.append((keys, table))
        undecided = {key for keys, _ in tables for key in keys}
        while undecided:
            together = {key: sorted({k for keys, _ in tables if key in keys for k in keys}) for key in undecided}
            sizes = {key: math.prod(len(options[k]) for k in together[key]) for key in sorted(undecided)}
            decided = min(sizes, key=sizes.__getitem__)
            if sizes[decided] > LARGEST_TABLE:
                raise SpaceError(
                    f"the cost of {len(together[decided])} choices, {decided} among them, depends on all of them "
                    f"together, expected at most {LARGEST_TABLE:,} combinations, got {sizes[decided]:,}",
                    fix="nest fewer choices in one another, or leave the cost out of the regularisers",
                )
            axes = together[decided]
            joint = torch.zeros([len(options[key]) for key in axes], dtype=torch.float64)
            for keys, table in tables:
                if decided in keys:
                    joint += table[tuple(slice(None) if key in keys else None for key in axes)]
            tables = [entry for entry in tables if decided not in entry[0]]
            rest, best = tuple(key for key in axes if key != decided), pick(joint, axes.index(decided))
            if rest:
                tables.append((rest, best))
            else:
                total += float(best)
            undecided.remove(decided)
        return total


class Expectation:
    """The expected cost of an architecture whose choices are drawn independently, each by its probabilities.

    cost: of the network. arch: whose keys and device it is for; it may have choices that cost nothing.
    Raises SpaceError if the cost is of candidates that `arch` does not have.
    """

    def __init__(self, cost: Cost, arch: ArchParams) -> None:
        rows = {key: row for row, key in enumerate(arch.keys)}
        widest = arch.mask.shape[1]
        one = arch.mask.numel()  # where a 1 is appended to the probabilities, for conditions that are shorter

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
        """probs: (choices, widest), of the rows of `arch`. Returns a scalar, differentiable in them."""
        padded = torch.cat([probs.flatten(), probs.new_ones(1)])
        return (padded[self._index].prod(dim=-1) * self._costs).sum()
