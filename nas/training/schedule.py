"""Schedules: pure functions of progress in [0, 1], for temperatures, learning rates and drop-path.

Progress is 0 at the first point of a run and 1 at the last, for any number of epochs. A resumed run therefore needs
only its position. Published codes change their learning rates once an epoch instead: see `CosineByEpoch`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer

from nas.errors import ConfigError, described

Schedule = Callable[[float], float]


def progress(position: float, length: int) -> float:
    """Returns the progress of `position` among `length` points 0 ..

    length-1: 0 at the first, 1 at the last, 0 if there is one.
    """
    return min(1.0, position / max(1, length - 1))


@dataclass(frozen=True)
class Constant:
    """The same value throughout. `start` is accepted so that it can replace a schedule that decays from `start`."""

    value: float | None = None
    start: float | None = None

    def __post_init__(self) -> None:
        if self.value is None and self.start is None:
            raise ConfigError("a constant schedule needs a value, got none", fix="set value, e.g. temperature.value=1")

    def __call__(self, progress: float) -> float:
        value = self.start if self.value is None else self.value
        assert value is not None  # __post_init__
        return value


@dataclass(frozen=True)
class Linear:
    """A straight line from start to end. GDAS lowers its temperature from 10 to 0.1 in this way."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        # Written so that progress 0 and 1 give start and end exactly, not to within rounding.
        return self.start * (1 - progress) + self.end * progress


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from start to end (Loshchilov & Hutter 2017, one cycle).

    warmup: the fraction of the run, at its beginning, that rises linearly from 0 to start.
    """

    start: float
    end: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(
                f"warmup is a fraction of the run in [0, 1), got {self.warmup}", fix="set warmup to e.g. 0.05"
            )

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return self.start * progress / self.warmup
        phase = (progress - self.warmup) / (1 - self.warmup)
        weight = 0.5 * (1 + math.cos(math.pi * phase))
        return self.start * weight + self.end * (1 - weight)


@dataclass(frozen=True)
class CosineByEpoch:
    """Half a cosine that changes once an epoch, as torch's CosineAnnealingLR does in the published codes.

    In epoch e of E, all steps have end + (start - end) (1 + cos(pi e / E)) / 2, so `end` itself is never reached.
    warmup_epochs: the first epochs, which rise step by step from 0 to start; the cosine spans the other epochs. epochs:
    the length of the cosine with its warm-up; None: the length of the run. A shorter run ends within the cosine.
    """

    start: float
    end: float = 0.0
    warmup_epochs: int = 0
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0:
            raise ConfigError(f"warmup_epochs must be >= 0, got {self.warmup_epochs}", fix="set warmup_epochs=0")
        if self.epochs is not None and self.epochs <= self.warmup_epochs:
            raise ConfigError(
                f"epochs of the cosine must be more than its {self.warmup_epochs} warmup_epochs, got {self.epochs}",
                fix="set epochs=null for the length of the run",
            )

    def in_epoch(self, position: float, epochs: int) -> float:
        """Returns the value at a position in epochs from 0, e.g. 2.5 in the middle of the third. epochs: of the run."""
        if position < self.warmup_epochs:
            return self.start * position / self.warmup_epochs
        length = max(1, (self.epochs or epochs) - self.warmup_epochs)
        phase = min(1.0, (math.floor(position) - self.warmup_epochs) / length)
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * phase))


def learning_rate(schedule: "Schedule | CosineByEpoch", epoch: int, step: int, *, steps: int, epochs: int) -> float:
    """Returns the learning rate of one step, counted from 0.

    The step is one of `steps` steps of an epoch, in a run of `epochs` epochs.
    """
    if isinstance(schedule, CosineByEpoch):
        return schedule.in_epoch(epoch + step / steps, epochs)
    return schedule(progress(epoch * steps + step, epochs * steps))


@dataclass(frozen=True)
class LinearByEpoch:
    """start + per_epoch * e in epoch e, counted from 0, for any length of the run.

    epochs: of the run, to compute the epoch from the progress.
    """

    per_epoch: float
    epochs: int
    start: float = 0.0

    def __call__(self, progress: float) -> float:
        return self.start + self.per_epoch * round(progress * (self.epochs - 1))


@dataclass(frozen=True)
class OneCycle:
    """Half a cosine up to start, the peak, and then half a cosine down to end. The momentum does not change.

    warmup: the fraction of the run that rises. initial: the first value, as a fraction of the peak.
    Source: Smith & Topin 2018, in the form of torch's OneCycleLR.
    """

    start: float
    end: float = 0.0
    warmup: float = 0.3
    initial: float = 0.04

    def __post_init__(self) -> None:
        if not 0 < self.warmup < 1:
            raise ConfigError(
                f"warmup is a fraction of the run in (0, 1), got {self.warmup}", fix="set warmup to e.g. 0.3"
            )
        if not 0 <= self.initial <= 1:
            raise ConfigError(
                f"initial is a fraction of the peak in [0, 1], got {self.initial}", fix="set initial to e.g. 0.04"
            )

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return Cosine(self.initial * self.start, self.start)(progress / self.warmup)
        return Cosine(self.start, self.end)((progress - self.warmup) / (1 - self.warmup))


@dataclass(frozen=True)
class Exponential:
    """A geometric decay from start to end: every epoch multiplies by the same factor. Both must be > 0."""

    start: float
    end: float

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.end > 0):
            raise ConfigError(
                f"an exponential schedule needs start and end > 0, got {self.start:g} and {self.end:g}",
                fix="set both, e.g. start=10 end=0.1",
            )

    def __call__(self, progress: float) -> float:
        # At 1 the power would have a rounding error, and the end must be exact.
        return self.end if progress >= 1 else self.start * (self.end / self.start) ** progress


@dataclass(frozen=True)
class Step:
    """Piecewise constant: start, multiplied by `factor` after each `every` of the run.

    every: a fraction of the run in (0, 1].
    """

    start: float
    factor: float = 0.1
    every: float = 1 / 3

    def __post_init__(self) -> None:
        if not 0 < self.every <= 1:
            raise ConfigError(
                f"every is a fraction of the run in (0, 1], got {self.every:g}", fix="set every to e.g. 0.25"
            )

    def __call__(self, progress: float) -> float:
        # 1e-9, because 0.3 / 0.1 is 2.9999999999999996: a rounding error must not delay a step.
        return self.start * self.factor ** math.floor(progress / self.every + 1e-9)


def positive(schedule: Schedule, what: str, *, points: int = 65) -> Schedule:
    """Returns the schedule if it is finite and above 0 at all of `points` points.

    Raises ConfigError, naming `what` (a setting, e.g. ``temperature``), otherwise.
    """
    strange = [value for value in values(schedule, what, points=points) if not 0 < value < math.inf]
    if strange:
        raise ConfigError(
            f"{what} must be finite and > 0 throughout, got {min(strange):g}",
            fix=f"set it to e.g. 0.1, as {what}.end=0.1",
        )
    return schedule


def learning_rates(schedule: "Schedule | CosineByEpoch", what: str, *, points: int = 65) -> "Schedule | CosineByEpoch":
    """Returns the schedule if it is finite and at least 0 at all of `points` points. Raises ConfigError otherwise."""
    if isinstance(schedule, CosineByEpoch):
        found = [schedule.in_epoch(epoch, points) for epoch in range(points)]
    else:
        found = values(schedule, what, points=points)
    strange = [value for value in found if not 0 <= value < math.inf]
    if strange:
        raise ConfigError(
            f"{what} must be finite and at least 0 throughout, got {strange[0]:g}", fix="correct the schedule"
        )
    return schedule


def values(schedule: Any, what: str, *, points: int) -> list[float]:
    """Returns the schedule's values at `points` points. Raises ConfigError if it is no function of the progress."""
    if not callable(schedule) or isinstance(schedule, type):
        got = f"the class {schedule.__name__}" if isinstance(schedule, type) else f"a {type(schedule).__name__}"
        raise ConfigError(
            f"{what} is {got}, expected a function of the progress in [0, 1]",
            fix="give e.g. nas.training.schedule.Linear(0.1, 0.1)",
        )
    try:
        found = [schedule(progress(i, points)) for i in range(points)]
    except Exception as error:
        raise ConfigError(f"{what} fails ({described(error)})", fix="correct the schedule and its numbers") from error
    for value in found:
        if not isinstance(value, Real | Tensor):
            raise ConfigError(
                f"{what} returns a {type(value).__name__}, expected a number at every progress in [0, 1]",
                fix="let it return a number",
            )
    first, again = float(found[0]), float(schedule(progress(0, points)))
    if first != again and not math.isnan(first):
        raise ConfigError(
            f"{what} returns another number each time it is asked for the same progress, expected a function of the "
            "progress alone, as a run may be continued at any step",
            fix="compute it from the progress, without a count of its calls",
        )
    return [float(value) for value in found]


# The learning rates that an optimiser's parameter groups were made with. A checkpoint replaces the groups, by those of
# an earlier release or of other settings; and an optimiser around another one may have no hooks that put rates back.
# By the first parameter of each group, as a hook may remove groups and add others.
INITIAL: WeakKeyDictionary[Optimizer, dict[Tensor | None, float]] = WeakKeyDictionary()


def keep_ratios(optimizer: Optimizer) -> list[float]:
    """Returns the learning rates that an optimiser's parameter groups were made with, for `set_lr`. Called first when
    it is made."""
    rates = INITIAL.setdefault(optimizer, {})
    return [rates.setdefault(next(iter(group["params"]), None), float(group["lr"])) for group in optimizer.param_groups]


def initial_lr(optimizer: Optimizer) -> float:
    """Returns the initial learning rate of the first parameter group that learns. Schedules refer to this group."""
    return next(filter(None, keep_ratios(optimizer)), 0.0)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets the optimiser's learning rate to the value of a schedule.

    The parameter groups keep the ratios of the rates that they were made with, as under torch's schedulers. The first
    group that learns has `lr` itself.
    """
    first = initial_lr(optimizer)
    for group, rate in zip(optimizer.param_groups, keep_ratios(optimizer), strict=True):
        scaled = float(lr * (rate / first) if first else lr)  # of NumPy, it would be in checkpoints
        if isinstance(group["lr"], Tensor):  # CUDA graphs read the rate from this tensor, so it is changed in place
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled
