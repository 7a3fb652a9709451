"""Caps on size and latency of the derived network: the search is pulled below them, and the deriver holds them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor, nn

from nas.data.inputs import Inputs
from nas.data.spec import DataSpec
from nas.errors import ConfigError
from nas.methods.best_of import BestOf
from nas.methods.cost import Cost, Expectation
from nas.methods.cost_regularisers import CostTarget, sketch
from nas.methods.counted_costs import macs, parameters, stored_bytes
from nas.methods.deriver import Argmax, Deriver
from nas.methods.timed_limit import FileClock, timed_limit
from nas.methods.within_cap import ROUNDING, Limit, WithinCap
from nas.spaces.space import Space
from nas.supernet.arch_params import ArchParams
from nas.training.schedule import Constant

# name -> its unit, and its count of a model with choices and a batch of one.
CAPS: dict[str, tuple[str, Callable[[nn.Module, Inputs], Cost]]] = {
    "parameters": ("parameters", lambda model, inputs: parameters(model)),
    "macs": ("multiply-accumulates", macs),
    "bytes": ("bytes", lambda model, inputs: stored_bytes(model)),
}
TIME = "latency_ms"
NAMES = (*CAPS, TIME)


def points_of(
    caps: Mapping[str, float | Sequence[float] | None],
    *,
    arch: ArchParams,
    space: Space,
    spec: DataSpec,
    times: FileClock | None = None,
) -> list[list[Limit]]:
    """The limits of each network that is to be derived, the loosest first: one, or as many as a cap has numbers.

    space: at the size of retraining. caps: name -> a number, or several of one name; below 1 it is a part of the
    largest network. times: measures files, for ``latency_ms``.
    Raises ConfigError for another cap than of `NAMES`, and for one below the smallest or above the largest network.
    """
    unknown: list[Any] = [name for name in caps if name not in NAMES] if isinstance(caps, Mapping) else [caps]
    if unknown:
        raise ConfigError(
            f"cap has {unknown[0]!r}, expected some of {', '.join(NAMES)}",
            fix="set e.g. cap.macs=0.5, half of the largest",
        )
    columns = [
        limits_of(name, given, arch=arch, space=space, spec=spec, times=times)
        for name, given in caps.items()
        if given is not None
    ]
    if len(several := [column[0].name for column in columns if len(column) > 1]) > 1:
        raise ConfigError(
            f"cap has several numbers of {' and of '.join(several)}, expected several of one name alone",
            fix=f"give one number of {several[1]}",
        )
    count = max((len(column) for column in columns), default=1)
    # Copies, as what is measured of a network is noted in its limits.
    return [[copy.copy(column[min(place, len(column) - 1)]) for column in columns] for place in range(count)]


def limits_of(
    name: str, given: Any, *, arch: ArchParams, space: Space, spec: DataSpec, times: FileClock | None
) -> list[Limit]:
    """The limits of one cap, the loosest first. given: a number, or several. Raises ConfigError as `points_of`."""
    numbers = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not numbers or any(isinstance(one, bool) or not isinstance(one, Real) for one in numbers):
        raise ConfigError(
            f"cap.{name} is {given!r}, expected a number, or several",
            fix=f"set e.g. cap.{name}=0.5, half of the largest",
        )
    make, (least, most) = kind_of(name, arch=arch, space=space, spec=spec, times=times)
    limits = [make(float(number)) for number in dict.fromkeys(numbers)]
    for limit in limits:
        if not limit.bound >= least:
            raise limit.refused(
                "below the smallest network of the space", least, most, fix=f"raise cap.{name}, or add candidates"
            )
        if limit.cap - ROUNDING * abs(limit.cap) > most:
            raise limit.refused(
                "above the largest network of the space", least, most, fix=f"lower cap.{name}, or leave it out"
            )
    return sorted(limits, key=lambda limit: -limit.cap)


def kind_of(
    name: str, *, arch: ArchParams, space: Space, spec: DataSpec, times: FileClock | None
) -> tuple[Callable[[float], Limit], tuple[float, float]]:
    """Returns a function that makes a limit of a number, and the lowest and the highest cost in the space."""
    if name == TIME:
        if times is None:
            raise ConfigError(f"cap.{name} needs a clock for exported files", fix="give SearchParts file_times")
        timed = timed_limit(arch=arch, space=space, spec=spec, times=times)
        return timed.with_cap, timed.cost.reachable(arch.candidates)
    unit, count = CAPS[name]
    with space.sketching():
        cost = count(*sketch(space, spec))
    least, most = cost.reachable(arch.candidates)
    return lambda cap: Limit(name, cost, float(cap * most if 0 < cap < 1 else cap), unit), (least, most)


def ranges(*, arch: ArchParams, space: Space, spec: DataSpec) -> dict[str, tuple[float, float]]:
    """Returns name of a cap -> (lowest, highest) cost of a network of the space."""
    with space.sketching():
        model, inputs = sketch(space, spec)
        costs = {name: count(model, inputs) for name, (_, count) in CAPS.items()}
    return {name: cost.reachable(arch.candidates) for name, cost in costs.items()}


class Pull(CostTarget):
    """max(0, E[cost] / cap - 1): pulls the expected cost below a cap, and no further.

    The expectation is that of `CostTarget`.
    """

    def __init__(self, limit: Limit, arch: ArchParams) -> None:
        # Not super().__init__, which refuses a target that is out of reach by rounding: see `points_of`.
        self.limit, self._cost, self.weight = limit, limit.cost, Constant(1.0)
        self._expected = Expectation(limit.cost, arch)

    def __call__(self, arch: ArchParams, progress: float) -> Tensor:
        if self._cost is not self.limit.cost:  # times that were measured before the run was resumed
            self._expected, self._cost = Expectation(self.limit.cost, arch), self.limit.cost
        return self.weight(progress) * (self.expected(arch) / self.limit.cap - 1).clamp(min=0)


def holding(deriver: Deriver, limits: list[Limit]) -> Deriver:
    """A deriver that derives as the given one does, but within the limits. Raises ConfigError if it cannot."""
    if not limits:
        return deriver
    if type(deriver) is Argmax:
        return WithinCap(limits, exclude=deriver.exclude)
    if type(deriver) is BestOf and deriver.count is None:
        within = copy.copy(deriver)
        within.rule = WithinCap(limits, exclude=deriver.exclude)
        return within
    raise ConfigError(
        f"cap.{limits[0].name} is held by deriver=argmax and by deriver=best_of that keeps every edge, got a "
        f"{type(deriver).__name__}",
        fix="set deriver=argmax, and keep=every_edge in a space of cells",
    )
