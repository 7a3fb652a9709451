"""A cap on the time that the derived network takes as an exported file: predicted by a table, then measured.

The prediction is a sum of times of single candidates, so it is off by some factor. When the search is over, the file of
the derived network is timed, the prediction is corrected by what was measured, and the network is derived again.
"""

import functools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import nn

from nas.data.inputs import Inputs
from nas.data.spec import DataSpec
from nas.errors import ConfigError, NasError
from nas.methods.cost import Cost
from nas.methods.counted_costs import macs
from nas.methods.latency_table import attributes, measure, shapes_of
from nas.methods.within_cap import Limit, most_probable
from nas.runtime import distributed
from nas.runtime.runtime import device_of
from nas.spaces.space import Space
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice, choices
from nas.supernet.copying import copied
from nas.supernet.freezing import freeze
from nas.supernet.genotype import Genotype

MOST_DERIVED = 6  # networks that are derived and timed to meet a cap; exporting one takes seconds
UNIT = "milliseconds"
Chosen = dict[str, str | None]


class FileClock(Protocol):
    """Times networks as files, on one thread of the CPU. The networks are on the CPU, in eval mode. Both methods raise
    ConfigError for a network that cannot be exported or run.

    known: what a search that is resumed measured at its beginning, see `TimedLimit.state_dict`; None to measure.
    """

    known: Mapping[str, Any] | None

    def in_turns(self, networks: Sequence[nn.Module], inputs: Inputs) -> list[list[float]]:
        """The median milliseconds of each network in each of several rounds. inputs: one example."""
        ...

    def of_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        """The milliseconds of a call of a part of a network."""
        ...


@dataclass
class TimedLimit(Limit):
    """The most milliseconds that the exported file of the derived network may take for one example.

    asked: the number that was given. part: which part of the largest network's time the cap is; None for a cap in
    milliseconds. table: the sum of the candidates' times. factor: what the table is multiplied by, so that `cost` =
    factor * table. whole: the milliseconds of the largest network's file. largest: the network of the most
    multiply-accumulates. found: what was measured of the derived network.
    """

    digits: ClassVar[int] = 4
    asked: float = math.inf
    part: float | None = None
    table: Cost = field(default_factory=lambda: Cost({}))
    factor: float = 1.0
    whole: float = 0.0
    largest: nn.Module | None = None
    inputs: Inputs | None = None
    times: FileClock | None = None
    found: dict[str, Any] = field(default_factory=dict)

    def correct(self, factor: float) -> None:
        self.factor = factor
        self.cost = Cost({condition: factor * value for condition, value in self.table.terms.items()})

    def with_cap(self, cap: float) -> "TimedLimit":
        """The same with another cap, in milliseconds or below 1 as a part."""
        part = cap if 0 < cap < 1 else None
        return replace(self, asked=cap, cap=cap if part is None else part * self.whole, part=part, found={})

    def measured(self, network: nn.Module) -> tuple[float, float]:
        """The milliseconds of the network's file: the median of the rounds, and the most by which a round is above
        the cap, as a factor. With a cap that is a part, the largest network is timed in turn, and gives the cap anew.
        """
        assert self.times is not None  # whoever made the limit has given these
        assert self.inputs is not None
        assert self.largest is not None
        rounds = self.times.in_turns([network] if self.part is None else [network, self.largest], self.inputs)
        caps = [self.cap if self.part is None else self.part * one[1] for one in rounds]
        self.cap = statistics.median(caps)
        return statistics.median(one[0] for one in rounds), max(
            one[0] / cap for one, cap in zip(rounds, caps, strict=True)
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "table": [float(value) for value in self.table.terms.values()],
            "whole": self.whole,
            "asked": self.asked,
            "cap": self.cap,
            "factor": self.factor,
            "found": dict(self.found),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with what was measured of the derived network, unless another cap is asked for by now.

        The table of candidates is known from the beginning, see `FileClock.known`.
        """
        if float(state["asked"]) == self.asked:
            self.cap, self.found = float(state["cap"]), dict(state["found"])
            self.correct(float(state["factor"]))


def timed_limit(*, arch: ArchParams, space: Space, spec: DataSpec, times: FileClock) -> TimedLimit:
    """Measures the table on this machine, unless it is known. Returns a limit without a cap.

    Every candidate is timed as a file of its own; then all times are scaled, so that their sum for the largest network
    is the time of its file. In several processes the first one measures.
    """
    with torch.random.fork_rng(devices=[]):
        model = space.build(spec, affine=True)
        chosen = largest_of(arch, space, spec)
        largest = space.network(spec, Genotype(space.name, chosen)).eval()
    inputs = spec.zeros(device=torch.device("cpu"), batch=1)
    table, whole = measure(model, inputs, device="cpu", clock=lambda run: 0.0).cost(model, inputs), 0.0
    known = times.known or {}
    if known.keys() >= {"table", "whole"} and len(known["table"]) == len(table.terms):
        measured = known["table"], known["whole"]
    else:
        if distributed.first():
            table = measure(model, inputs, device="cpu", clock=Clock(times)).cost(model, inputs)
            whole = statistics.median(one for (one,) in times.in_turns([largest], inputs))
        measured = list(table.terms.values()), whole
    values, whole = distributed.of_all(measured)[0]
    table = Cost(dict(zip(table.terms, values, strict=True)))
    limit = TimedLimit(
        "latency_ms", table, math.inf, UNIT, table=table, whole=whole, largest=largest, inputs=inputs, times=times
    )
    limit.correct(whole / (table.of(chosen) or 1.0))
    return limit


class Clock:
    """Gives the milliseconds of a call of a module, exported with the first candidates of the choices inside. Modules
    of equal attributes are timed once for each shape of their inputs."""

    def __init__(self, times: FileClock) -> None:
        self._times = times
        self._known: dict[tuple[Any, ...], float] = {}

    def __call__(self, run: Callable[[], Any]) -> float:
        assert isinstance(run, functools.partial)
        kind = (attributes(run.func), shapes_of(run.args, run.keywords))
        if kind not in self._known:
            module: Any = copied(cast(nn.Module, run.func))
            if any(isinstance(one, Choice) for one in module.modules()):
                module = freeze(module, {key: sharing[0].names[0] for key, sharing in choices(module).items()})
            self._known[kind] = self._times.of_call(module.eval(), run.args, run.keywords)
        return self._known[kind]


def largest_of(arch: ArchParams, space: Space, spec: DataSpec) -> Chosen:
    """The choices of the network with the most multiply-accumulates; of several, the one with earlier candidates."""
    with space.sketching():
        model = space.build(spec, affine=True)
        cost = macs(model, spec.zeros(device=device_of(model), batch=1))
    _, most = cost.reachable(arch.candidates)
    options = {
        key: {name: 1.0 / (1 + place) for place, name in enumerate(names)} for key, names in arch.candidates.items()
    }
    opposite = Cost({condition: -count for condition, count in cost.terms.items()})
    return dict(most_probable(options, [Limit("macs", opposite, -most)]))


@dataclass(frozen=True)
class Timed:
    """A derived network, timed as a file. over: the most by which a round was above the cap, as a factor. found: what
    ``result.json`` says of it."""

    chosen: Chosen
    over: float
    found: dict[str, Any]


def derive_within(
    limit: TimedLimit, derive: Callable[[], Chosen], *, arch: ArchParams, network: Callable[[Chosen], nn.Module]
) -> Chosen:
    """Derives a network whose file meets the cap: derives, measures, corrects the limit, and repeats.

    Sets `found` of the limit.

    derive: reads the limit. network: of choices. After each measurement the prediction has the value that was measured;
    so a miss gives a faster network, and a network that is faster than predicted gives way to a more probable one. Of
    the networks that meet the cap in all rounds of a measurement the most probable counts; the fastest, with a
    warning, if there is none.
    """
    seen: list[Timed] = []
    while len(seen) < MOST_DERIVED:
        try:
            chosen = derive()
        except ConfigError:  # none meets the corrected cap and the other caps together
            if not seen:
                raise
            break
        if any(chosen == one.chosen for one in seen):
            break
        predicted = limit.cost.of(chosen)
        measured = distributed.of_all(measured_or_reason(limit, network(chosen)) if distributed.first() else None)[0]
        if isinstance(measured, str):
            if distributed.first():
                print(f"warning: cap.{limit.name} is not measured: {measured}", file=sys.stderr)
            return chosen
        taken, over = measured
        limit.cap = distributed.of_all(limit.cap)[0]
        found = {"cap": limit.cap, "predicted": predicted, "measured": taken}
        if limit.part is not None:
            found["ratio"] = limit.part * taken / limit.cap
        seen.append(Timed(chosen, over, found))
        limit.correct(over * limit.cap / (limit.table.of(chosen) or 1.0))
        least, _ = limit.cost.reachable(arch.candidates)
        if least > limit.cap:  # not even the fastest network is predicted to meet it: try that one
            limit.correct(limit.factor * limit.cap / least * (1 - 1e-9))
    probs = arch.named_probs()

    def log_probability(one: Timed) -> float:
        return sum(math.log(probs[key][name] or 1e-300) for key, name in one.chosen.items() if name)

    holding = [one for one in seen if one.over <= 1]
    best = max(holding, key=log_probability) if holding else min(seen, key=lambda one: one.found["measured"])
    limit.found, limit.cap = best.found, best.found["cap"]
    if not holding and distributed.first():
        print(
            f"warning: cap.{limit.name} is {limit.cap:.4g} ms, but the fastest of {len(seen)} derived networks takes "
            f"{limit.found['measured']:.4g} ms as a file: raise the cap, or add faster candidates",
            file=sys.stderr,
        )
    return best.chosen


def measured_or_reason(limit: TimedLimit, network: nn.Module) -> tuple[float, float] | str:
    """Returns the result of `TimedLimit.measured`, or the reason if the network cannot be exported or run.

    A search that has ended must not be lost for it."""
    try:
        return limit.measured(network)
    except NasError as error:
        return error.problem
