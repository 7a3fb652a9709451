"""Derives the most probable architecture among those that caps allow."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context
from typing import Any, ClassVar

import numpy as np

from nas.errors import ConfigError
from nas.methods.cost import Cost
from nas.methods.deriver import allowed
from nas.supernet.arch_params import ArchParams
from nas.supernet.every_candidate import Condition

# The largest coefficient of a row. HiGHS drops coefficients below 1e-9, and its tolerance for rows is absolute: with 1
# here, one in 400 architectures of random costs up to 1e9 is not the most probable one.
LARGEST = 1e4
# Sums of the same costs in another order differ by less. A cap may be the cost of the cheapest network.
ROUNDING = 1e-12  # as a part of the cap
FINER = 1e4  # how many times smaller the costs of the next row are


@dataclass
class Limit:
    """The most that an architecture may cost. name: of the cost, as in ``cap.macs``. cap: in the unit of the cost."""

    digits: ClassVar[int] = 10  # of numbers in messages
    name: str
    cost: Cost
    cap: float
    unit: str = ""

    @property
    def bound(self) -> float:
        """The cap, and what sums of costs may be above it by rounding."""
        return self.cap + ROUNDING * abs(self.cap)

    def refused(self, reason: str, least: float, most: float, *, fix: str) -> ConfigError:
        unit = f" {self.unit}" * bool(self.unit)
        # Rounded inwards, because the numbers of a message are copied into the next command.
        numbers = (self.cap, ROUND_HALF_EVEN), (least, ROUND_CEILING), (most, ROUND_FLOOR)
        cap, low, high = (shown(value, self.digits, rounding) for value, rounding in numbers)
        return ConfigError(f"cap.{self.name} is {cap}{unit}, {reason}, expected {low} to {high}", fix=fix)


def shown(value: float, digits: int, rounding: str) -> str:
    """Returns a number with so many digits at most. rounding: a mode of `decimal`."""
    return f"{float(Context(prec=digits, rounding=rounding).create_decimal(value)):,.{digits}g}"


class WithinCap:
    """The architecture of the largest product of probabilities that holds all limits: exactly, by integer programming
    (HiGHS in scipy).

    exclude: candidates that are never derived.
    Choices are independent, so this is a multiple-choice knapsack; candidates inside other candidates and weights that
    several share add constraints. Raises ConfigError for a cap below the cheapest architecture.
    """

    def __init__(self, limits: Sequence[Limit], *, exclude: Sequence[str] = ()) -> None:
        self.limits = tuple(limits)
        self.exclude = tuple(exclude)

    def __call__(self, arch: ArchParams) -> dict[str, str | None]:
        options = {key: allowed(probs, self.exclude) for key, probs in arch.named_probs().items()}
        return dict(most_probable(options, self.limits))


def most_probable(options: Mapping[str, Mapping[str, float]], limits: Sequence[Limit]) -> dict[str, str]:
    """The candidate of each choice. options: choice key -> candidate -> probability. See `WithinCap`."""
    for limit in limits:
        least, most = limit.cost.reachable({key: tuple(names) for key, names in options.items()})
        if least > limit.bound:
            raise limit.refused(
                "below the cheapest network of the space", least, most, fix="raise the cap, or add cheaper candidates"
            )
    program = _Program(options, limits)
    seen: set[Any] = set()
    while True:
        chosen = program.solved()
        missed = next((limit for limit in limits if limit.cost.of(chosen) > limit.bound), None)
        if missed is None:
            return chosen
        # Above a cap by no more than the solver's tolerance, which is too much.
        coefficients, most = finer(chosen, missed, program.column, seen) or (
            dict.fromkeys((frozenset([pair]) for pair in chosen.items()), 1.0),
            len(chosen) - 1.0,
        )
        program.at_most(most, coefficients, scaled=True)


class _Program:
    """The integer program of `most_probable`, solved by HiGHS.

    column: condition -> its variable. There is one for each candidate, 1 where it is chosen; and one for each condition
    of several candidates, 1 where all of them are.
    """

    def __init__(self, options: Mapping[str, Mapping[str, float]], limits: Sequence[Limit]) -> None:
        self.limits = limits
        self.surprise = {
            frozenset([(key, name)]): -math.log(max(p, sys.float_info.min))
            for key, names in options.items()
            for name, p in names.items()
        }
        possible = frozenset().union(*self.surprise)
        terms = dict.fromkeys(condition for limit in limits for condition in limit.cost.terms)
        joint = [condition for condition in terms if len(condition) > 1 and condition <= possible]
        self.column: dict[Condition, int] = {condition: i for i, condition in enumerate((*self.surprise, *joint))}
        self.rows = [
            (self.row({frozenset([(key, name)]): 1 for name in names}), 1.0, 1.0) for key, names in options.items()
        ]
        for limit in limits:
            paid = {condition: cost for condition, cost in limit.cost.terms.items() if condition in self.column}
            self.at_most(limit.cap - limit.cost.terms.get(frozenset(), 0.0), paid, scaled=True)
        for condition in joint:  # it is at most each of its parts, and at least their sum less (n - 1)
            parts = [frozenset([pair]) for pair in condition]
            for part in parts:
                self.at_most(0.0, {condition: 1, part: -1})
            self.at_most(len(parts) - 1.0, {condition: -1} | dict.fromkeys(parts, 1))

    def row(self, coefficients: Mapping[Condition, float]) -> np.ndarray:
        filled = np.zeros(len(self.column))
        for condition, value in coefficients.items():
            filled[self.column[condition]] = value
        return filled

    def at_most(self, most: float, coefficients: Mapping[Condition, float], *, scaled: bool = False) -> None:
        """Adds the constraint that the sum of the variables, times their coefficients, is no more than `most`."""
        largest = max(map(abs, coefficients.values()), default=0.0) or 1.0
        scale = LARGEST / largest if scaled else 1.0  # the solver's tolerances are absolute
        self.rows.append((self.row(coefficients) * scale, -np.inf, most * scale))

    def solved(self) -> dict[str, str]:
        """Returns the candidates of the smallest surprise. Raises ConfigError if there is no solution."""
        from scipy.optimize import Bounds, LinearConstraint, milp  # takes a third of a second, which few runs need

        matrix, lower, upper = (np.array(column) for column in zip(*self.rows, strict=True))
        found = milp(
            self.row(self.surprise),
            constraints=LinearConstraint(matrix, lower, upper),
            integrality=np.ones(len(self.column)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            names = " and ".join(f"cap.{limit.name}={limit.cap:,.10g}" for limit in self.limits)
            raise ConfigError(f"no architecture within {names} was found ({found.message})", fix="raise one of them")
        picked = [condition for condition in self.surprise if found.x[self.column[condition]] > 0.5]
        return {key: name for condition in picked for key, name in condition}


def finer(
    chosen: Mapping[str, str], limit: Limit, column: Mapping[Condition, int], seen: set[Any]
) -> tuple[dict[Condition, float], float] | None:
    """What a limit says of the small costs where the large ones are those of an architecture above it: coefficients,
    and the most that their sum may be. None where all of this was said before.

    The solver's tolerance is a part of the largest coefficient, so a row of the small costs alone is exact to
    the last of them; excluding architectures one by one would take exponentially many steps. With large costs L that
    are paid and small costs s the row is sum(s) + M * sum(L's conditions) <= rest + M * len(L), where M makes it hold
    as soon as one of L is not paid. Other large costs are left out: they would only add to the sum. seen: what was
    said.
    """
    terms = {condition: cost for condition, cost in limit.cost.terms.items() if condition in column}
    least = min(abs(cost) for cost in terms.values() if cost)
    above = max(map(abs, terms.values())) / FINER
    while above > least:
        large = frozenset(c for c, cost in terms.items() if cost >= above and c <= chosen.items())
        small = {condition: cost for condition, cost in terms.items() if cost < above}
        rest = limit.cap - limit.cost.terms.get(frozenset(), 0.0) - sum(terms[condition] for condition in large)
        slack = sum(cost for cost in small.values() if cost > 0) - rest
        if slack > 0 and (limit.name, large, above) not in seen:
            seen.add((limit.name, large, above))
            return small | dict.fromkeys(large, slack), rest + slack * len(large)
        above /= FINER
    return None
