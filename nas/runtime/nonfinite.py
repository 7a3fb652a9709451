"""Finds numbers that are not finite before a checkpoint saves them, and names their parameter in the error."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import ConfigError, DivergenceError
from nas.runtime import distributed
from nas.runtime.buffers import Buffers

ACTIONS = ("stop", "skip")

# Names a parameter in an error message.
Naming = Callable[[Tensor], str]


@dataclass(frozen=True)
class OnNonfinite:
    """The reaction to a step whose loss or gradient is not finite.

    action: ``stop`` the run, or ``skip`` the step, which then changes neither weights nor their momentum nor logits.
    max_skipped: the number of steps that a stage may skip. One more stops the stage.

    With ``stop`` the host never waits for a GPU: the error comes one step late. With ``skip`` it waits in every step.
    """

    action: str = "stop"
    max_skipped: int = 10

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ConfigError(
                f"runtime.on_nonfinite must be one of {', '.join(ACTIONS)}, got {self.action!r}",
                fix="set runtime.on_nonfinite=stop",
            )
        if self.max_skipped < 1:
            raise ConfigError(
                f"runtime.max_skipped must be at least 1, got {self.max_skipped}",
                fix="set runtime.max_skipped=10, or runtime.on_nonfinite=stop to skip none",
            )


@dataclass(frozen=True)
class Level:
    """The kind of parameters that a step updates. lr: the setting that errors advise to lower."""

    name: str
    lr: str


WEIGHTS = Level("weights", "weight_optim.lr")
ARCHITECTURE = Level("architecture", "weight_optim.lr or arch_optim.lr")
RETRAINING = Level("weights", "retrain.optim.lr")


@dataclass(frozen=True)
class Reading:
    """The loss and gradient norms of one step.

    place: epoch and step, from 0. values: (2,) the loss, and the norm of all gradients. norms: that of each parameter's
    gradient, which come to the host only if there is a problem. copied: an event that marks the end of the transfer of
    the values to the host, or None without a transfer.
    """

    place: tuple[int, int]
    level: Level
    values: Tensor
    norms: Tensor
    parameters: Sequence[Tensor]
    naming: Naming
    copied: torch.cuda.Event | None = None

    def problem(self) -> str | None:
        """Describes the first value that is not finite. Returns None if all values are finite."""
        if self.copied is not None:
            self.copied.synchronize()
        loss, total = self.values.tolist()
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if math.isfinite(total):  # so is each norm
            return None
        for parameter, norm in zip(self.parameters, self.norms.tolist(), strict=True):
            if not math.isfinite(norm):
                return f"the gradient of {self.naming(parameter)} has the norm {norm}"
        return f"the norm of all gradients is {total}"

    def sent(self) -> "Reading":
        """Starts the transfer of the values to the host, and returns the new reading without waiting."""
        if self.values.device.type != "cuda":
            return self
        values = torch.empty(self.values.shape, pin_memory=True).copy_(self.values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return replace(self, values=values, copied=copied)


class Guard:
    """Checks the steps of a stage. Its state, the number of skipped steps, is part of a checkpoint.

    late: check the values of a step during the next step, when the device has computed them. A CPU needs no delay.
    """

    def __init__(self, do: OnNonfinite | None = None, *, late: bool = False) -> None:
        self.do = do or OnNonfinite()
        self.skips = self.do.action == "skip"
        self.skipped = 0
        self._late = late and not self.skips
        self.place = (0, 0)
        self._unread: list[Reading] = []
        self._buffers: list[Buffers] = []

    def watch(self, level: Level, loss: Tensor, naming: Naming) -> "Watch":
        """A `Watch` for one optimiser step. loss: the loss whose gradients the step uses."""
        own = loss.detach().float()
        return Watch(self, level, own.clone() if distributed.world() > 1 else own, naming)

    @contextmanager
    def at(self, epoch: int, step: int) -> Iterator[None]:
        """Wraps a step of both levels, counted from 0. Adds the place to a DivergenceError that is raised inside."""
        self.place = (epoch, step)
        try:
            yield
        except DivergenceError as error:
            self._read_all()  # an earlier step may be the cause
            raise located(error, self.place) from error
        before = [reading for reading in self._unread if reading.place != self.place]
        self._unread = [reading for reading in self._unread if reading.place == self.place]
        self._read(before)

    def begin(self, *models: nn.Module) -> None:
        """Saves the buffers of a model, and of the modules in a loss, before a forward pass: a NaN would stay in their
        running statistics for good."""
        if self.skips:
            self._buffers = [Buffers(model) for model in models]

    def on_trial(self) -> AbstractContextManager[None]:
        """A context for a step on trial. If steps are skipped, such a step may have numbers that are not finite."""
        return suppress(DivergenceError) if self.skips else nullcontext()

    def passes(self, reading: Reading) -> bool:
        """Whether the optimiser may take the step. False skips the step.

        Raises DivergenceError if a value is not finite and the run must stop. Several processes pass the same numbers,
        so all of them raise. If the check is late, `at` and `check` raise the error.
        """
        if self._late:
            self._unread.append(reading.sent())
            return True
        if (problem := reading.problem()) is None:
            return True
        # The step has not changed the parameters yet.
        problem = broken(reading.parameters, reading.naming) or problem
        if not self.skips or self.skipped >= self.do.max_skipped:
            raise self._error(reading.level, problem)
        for buffers in self._buffers:
            buffers.put_back()
        self.skipped += 1
        if distributed.first():
            epoch, step = reading.place
            print(
                f"warning: epoch {epoch + 1}, step {step + 1}, {reading.level.name}: {problem}; this step is skipped, "
                f"{self.skipped} of at most {self.do.max_skipped}",
                file=sys.stderr,
            )
        return False

    def check(self, level: Level, parameters: Iterable[Tensor], naming: Naming) -> None:
        """Raises DivergenceError unless all steps so far and these parameters are finite. Called before a save.

        A finite gradient may still push a weight out of range, and the next steps may not draw the weight's operation.
        """
        self._read_all()
        if (problem := broken(parameters, naming)) is not None:
            raise located(self._error(level, problem), self.place)

    def metrics(self) -> dict[str, float]:
        """The metrics of the stage so far."""
        return {"skipped_steps": self.skipped} if self.skips else {}

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped = state["skipped"]

    def _read_all(self) -> None:
        unread, self._unread = self._unread, []
        self._read(unread)

    def _read(self, readings: Iterable[Reading]) -> None:
        for reading in readings:
            if (problem := reading.problem()) is not None:
                raise located(self._error(reading.level, problem), reading.place)

    def _error(self, level: Level, problem: str) -> DivergenceError:
        if self.skips:
            return DivergenceError(
                f"{level.name}: {problem} after {self.skipped} skipped steps, expected at most {self.do.max_skipped}",
                fix=f"lower {level.lr}, or raise runtime.max_skipped",
            )
        return DivergenceError(
            f"{level.name}: {problem}, expected finite numbers",
            fix=f"lower {level.lr}, or skip such steps by runtime.on_nonfinite=skip",
        )


@dataclass(frozen=True)
class Watch:
    """The data that a guard needs about one optimiser step. loss: becomes the mean over all processes."""

    guard: Guard
    level: Level
    loss: Tensor
    naming: Naming

    def passes(self, parameters: Sequence[Tensor], norms: Tensor, total: Tensor) -> bool:
        """Calls `Guard.passes`. norms: (n,) the gradient norm of each parameter. total: () the norm of all together."""
        values = torch.stack([self.loss, total])
        return self.guard.passes(Reading(self.guard.place, self.level, values, norms, parameters, self.naming))


def located(error: DivergenceError, place: tuple[int, int]) -> DivergenceError:
    """Returns the error with epoch and step, counted from 1, in its message."""
    epoch, step = place
    return DivergenceError(f"epoch {epoch + 1}, step {step + 1}, {error.problem}", fix=error.fix)


@torch.no_grad()
def broken(parameters: Iterable[Tensor], naming: Naming) -> str | None:
    """Names the first parameter that is not finite, or returns None. Checks the norms of all parameters first."""
    parameters = list(parameters)
    if not parameters or each_norm(parameters).isfinite().all():
        return None
    found = next((parameter for parameter in parameters if not parameter.isfinite().all()), None)
    return None if found is None else f"there are numbers in {naming(found)} that are not finite"


def each_norm(tensors: Sequence[Tensor]) -> Tensor:
    """(n,): the 2-norm of each of n tensors, with a few kernels for all tensors."""
    norms = torch._foreach_norm(list(tensors))
    if len(set(map(Tensor.get_device, norms))) > 1:
        norms = tuple(norm.to(norms[0].device) for norm in norms)
    return torch.stack(norms)


def naming(model: nn.Module) -> Naming:
    """Names a module's parameters by their paths."""

    def name(parameter: Tensor) -> str:
        return next(name for name, other in model.named_parameters() if other is parameter)

    return name
