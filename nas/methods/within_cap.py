"""Derives the most probable architecture among those that a cap allows."""

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from nas.errors import ConfigError
from nas.methods.cost import Cost
from nas.supernet.arch_params import ArchParams
from nas.supernet.every_candidate import Condition


class WithinCap:
    """The architecture of the largest product of probabilities whose cost is at most `cap`: exactly, by integer
    programming (HiGHS in scipy).

    cost: of an architecture. cap: in the unit of the cost. exclude: candidates that are never derived.
    Choices are independent, so this is a multiple-choice knapsack; candidates inside other candidates and weights that
    several share add constraints. Raises ConfigError for a cap below the cheapest architecture.
    """

    def __init__(self, cost: Cost, *, cap: float, exclude: Sequence[str] = (), unit: str = "") -> None:
        self.cost = cost
        self.cap = cap
        self.exclude = tuple(exclude)
        self.unit = unit

    def __call__(self, arch: ArchParams) -> dict[str, str | None]:
        options = {
            key: {name: p for name, p in probs.items() if name not in self.exclude}
            for key, probs in arch.named_probs().items()
        }
        return dict(most_probable(options, self.cost, self.cap, unit=self.unit))


def most_probable(
    options: Mapping[str, Mapping[str, float]], cost: Cost, cap: float, *, unit: str = ""
) -> dict[str, str]:
    """The candidate of each choice. options: choice key -> candidate -> probability. See `WithinCap`."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes a third of a second, which most runs need not pay

    least, most = cost.reachable({key: tuple(names) for key, names in options.items()})
    if least > cap:
        raise ConfigError(
            f"the cap is {cap:,.10g}{unit and f' {unit}'}, below the cheapest network of the space, expected "
            f"{least:,.10g} to {most:,.10g}",
            fix="raise the cap, or add cheaper candidates",
        )
    # A variable for each candidate, 1 where it is chosen; and one for each condition of several candidates, 1 where all
    # of them are.
    single = [frozenset([(key, name)]) for key in options for name in options[key]]
    possible = frozenset().union(*single)
    joint = [condition for condition in cost.terms if len(condition) > 1 and condition <= possible]
    place: dict[Condition, int] = {condition: number for number, condition in enumerate((*single, *joint))}

    def row(coefficients: Mapping[Condition, float]) -> np.ndarray:
        filled = np.zeros(len(place))
        for condition, value in coefficients.items():
            filled[place[condition]] = value
        return filled

    rows = [(row({frozenset([(key, name)]): 1 for name in options[key]}), 1.0, 1.0) for key in options]
    paid = {condition: value for condition, value in cost.terms.items() if condition in place}
    rows.append((row(paid), -np.inf, cap - cost.terms.get(frozenset(), 0.0)))
    for condition in place:
        if len(condition) > 1:  # it is at most each of its parts, and at least their sum less (n - 1)
            parts = [frozenset([pair]) for pair in condition]
            rows += [(row({condition: 1, part: -1}), -np.inf, 0.0) for part in parts]
            rows.append((row({condition: -1} | dict.fromkeys(parts, 1)), -np.inf, len(parts) - 1.0))
    surprise = {
        frozenset([(key, name)]): -math.log(max(p, sys.float_info.min))
        for key, names in options.items()
        for name, p in names.items()
    }
    matrix, lower, upper = (np.array(column) for column in zip(*rows, strict=True))
    found = milp(
        row(surprise),
        constraints=LinearConstraint(matrix, lower, upper),
        integrality=np.ones(len(place)),
        bounds=Bounds(0, 1),
    )
    if found.x is None:
        raise ConfigError(f"no architecture within the cap was found ({found.message})", fix="raise the cap")
    picked = {condition for condition in single if found.x[place[condition]] > 0.5}
    return {key: name for condition in picked for key, name in condition}
