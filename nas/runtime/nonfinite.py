"""Numbers that are not finite: noticed within a step, before they reach a checkpoint, and told by name."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import ConfigError, DivergenceError
from nas.runtime import distributed
from nas.runtime.buffers import Buffers

ACTIONS = ("stop", "skip")

# The name of a parameter of which something is not finite.
Naming = Callable[[Tensor], str]


@dataclass(frozen=True)
class OnNonfinite:
    """What is done about a step whose loss or gradient is not finite.

    action: ``stop`` the run, or ``skip`` the step, so that it moves neither weights nor their momentum nor logits.
    max_skipped: steps of a stage that may be skipped; one more stops it.

    To stop costs a GPU no wait: it is told one step late. To skip, the host waits for it in every step.
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
    """What takes steps of its own, for errors. lr: the setting to lower."""

    name: str
    lr: str


WEIGHTS = Level("weights", "weight_optim.lr")
ARCHITECTURE = Level("architecture", "weight_optim.lr or arch_optim.lr")
RETRAINING = Level("weights", "retrain.optim.lr")


@dataclass(frozen=True)
class Reading:
    """What a step has to show, on its way to the host: the loss, the norm of each parameter's gradient, their total.

    place: epoch and step, from 0. copied: when it has arrived, None if it was there at once.
    """

    place: tuple[int, int]
    level: Level
    values: Tensor
    parameters: Sequence[Tensor]
    naming: Naming
    copied: torch.cuda.Event | None = None

    def problem(self) -> str | None:
        """The first that is not finite; None if all are."""
        if self.copied is not None:
            self.copied.synchronize()
        for index, value in enumerate(self.values.tolist()):
            if math.isfinite(value):
                continue
            if index == 0:
                return f"the loss is {value}"
            if index <= len(self.parameters):
                return f"the gradient of {self.naming(self.parameters[index - 1])} has the norm {value}"
            return f"the norm of all gradients is {value}"
        return None

    def sent(self) -> "Reading":
        """The same with its values on the way to the host, for which nobody waits."""
        if self.values.device.type != "cuda":
            return self
        values = torch.empty(self.values.shape, pin_memory=True).copy_(self.values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return replace(self, values=values, copied=copied)


class Guard:
    """Watches the steps of a stage, and is a part of its state: the number of those that may be skipped is bounded.

    late: read what a step has to show in the next one, when it has been computed anyway. On a CPU it has been at once.
    """

    def __init__(self, do: OnNonfinite | None = None, *, late: bool = False) -> None:
        self.do = do or OnNonfinite()
        self.skips = self.do.action == "skip"
        self.skipped = 0
        self._late = late and not self.skips
        self.place = (0, 0)
        self._unread: list[Reading] = []
        self._buffers: Buffers | None = None

    def watch(self, level: Level, loss: Tensor, naming: Naming) -> "Watch":
        """For one step of an optimiser. loss: what its gradients are of."""
        return Watch(self, level, loss.detach().float().clone(), naming)

    @contextmanager
    def at(self, epoch: int, step: int) -> Iterator[None]:
        """Around a step, counted from 0, of both levels: what diverges inside is told where."""
        self.place = (epoch, step)
        try:
            yield
        except DivergenceError as error:
            self._read_all()  # what came before it may be why
            raise located(error, self.place) from error
        before = [reading for reading in self._unread if reading.place != self.place]
        self._unread = [reading for reading in self._unread if reading.place == self.place]
        self._read(before)

    def begin(self, model: nn.Module) -> None:
        """Before a step's forward pass, which moves running statistics: they would keep a NaN for good."""
        if self.skips:
            self._buffers = Buffers(model)

    def passes(self, reading: Reading) -> bool:
        """Whether a step may be taken, now that its gradients are there; False if it is to be skipped.

        Raises DivergenceError if it is not finite and the run is to stop; of several processes, which pass the same
        numbers, in all. If it is read late, `at` and `check` raise that.
        """
        if self._late:
            self._unread.append(reading.sent())
            return True
        if reading.values.isfinite().all():
            return True
        problem = broken(reading.parameters, reading.naming) or reading.problem()  # the step has not moved them yet
        if not self.skips or self.skipped >= self.do.max_skipped:
            raise self._error(reading.level, problem)
        if self._buffers is not None:
            self._buffers.put_back()
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
        """Before they are saved. Raises DivergenceError unless all steps so far, and these parameters, are finite: a
        finite gradient may still throw a weight out of range, and the next steps may not draw it."""
        self._read_all()
        if (problem := broken(parameters, naming)) is not None:
            raise located(self._error(level, problem), self.place)

    def metrics(self) -> dict[str, float]:
        """Of the stage so far."""
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

    def _error(self, level: Level, problem: str | None) -> DivergenceError:
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
    """What a guard is to know of one step of an optimiser. loss: of all processes, once their means are taken."""

    guard: Guard
    level: Level
    loss: Tensor
    naming: Naming

    def passes(self, parameters: Sequence[Tensor], norms: Tensor, total: Tensor) -> bool:
        """`Guard.passes`, given the (n,) norms of the n parameters' gradients, and () of all of them."""
        values = torch.cat([self.loss[None], norms, total[None]])
        return self.guard.passes(Reading(self.guard.place, self.level, values, parameters, self.naming))


def located(error: DivergenceError, place: tuple[int, int]) -> DivergenceError:
    """The same with epoch and step, which are told from 1."""
    epoch, step = place
    return DivergenceError(f"epoch {epoch + 1}, step {step + 1}, {error.problem}", fix=error.fix)


@torch.no_grad()
def broken(parameters: Iterable[Tensor], naming: Naming) -> str | None:
    """What is not finite among parameters; None if all are. Looks at each only if it must."""
    parameters = list(parameters)
    if not parameters or each_norm(parameters).isfinite().all():
        return None
    found = next((parameter for parameter in parameters if not parameter.isfinite().all()), None)
    return None if found is None else f"there are numbers in {naming(found)} that are not finite"


def each_norm(tensors: Sequence[Tensor]) -> Tensor:
    """(n,): the 2-norm of each of n tensors, in a few kernels for all of them."""
    return torch.stack([norm.to(tensors[0].device) for norm in torch._foreach_norm(list(tensors))])


def naming(model: nn.Module) -> Naming:
    """Of a module's parameters: by their paths."""

    def name(parameter: Tensor) -> str:
        return next(name for name, other in model.named_parameters() if other is parameter)

    return name
