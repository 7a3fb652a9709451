"""Averages what the steps of an epoch measure, without waiting for the device at each step."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.runtime import distributed
from nas.training.metrics import single


@dataclass(frozen=True)
class StepResult:
    """What a step measured, still on the device. Reading a value waits for the device.

    loss: mean over the batch. metric: the task's metric, summed over the batch. examples: number in the batch.
    grad_norm: before clipping. skipped: a value was not finite, so the step is not counted. scaled: by a scaler, which
    takes no step where the norm is not finite: the norm is not counted then.
    """

    loss: Tensor
    metric: Tensor
    examples: int
    grad_norm: Tensor
    skipped: bool = False
    scaled: bool = False


class Meter:
    """Sums step results on the device and reads the sums once, in `summary`.

    All processes call `summary` together; it covers all of them. metric: the metric's name.
    """

    def __init__(self, metric: str) -> None:
        self._examples = 0
        self._name = metric
        self._steps = 0
        self._norms: Tensor | int = 0  # that are counted
        self._loss: Tensor | float = 0.0
        self._metric: Tensor | float = 0.0
        self._grad_norm: Tensor | float = 0.0

    @property
    def examples(self) -> int:
        """Returns the number of examples in all processes, which have equally many."""
        return self._examples * distributed.world()

    def add(self, result: StepResult) -> None:
        if result.skipped:
            return
        self._examples += result.examples
        self._steps += 1
        norm: Tensor = single(result.grad_norm)
        counted: Tensor | int = 1
        if result.scaled:
            finite = norm.isfinite()
            norm, counted = norm.where(finite, 0.0), finite.long()
        self._norms = self._norms + counted
        values = [single(result.loss) * result.examples, single(result.metric), norm]
        sums = [one for one in (self._loss, self._metric, self._grad_norm) if isinstance(one, Tensor)]
        if sums:
            torch._foreach_add_(sums, values)  # one kernel on a GPU
        else:  # before the first step
            self._loss, self._metric, self._grad_norm = (0.0 + value for value in values)

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums of all processes, which call it together. As many other processes can continue from it."""
        sums = [torch.as_tensor(value).clone() for value in (self._loss, self._metric, self._grad_norm)]
        if (world := distributed.world()) > 1:
            loss, metric, grad_norm = distributed.means(value.double() for value in sums)
            sums = [world * loss, world * metric, grad_norm]  # grad_norm is the same in all processes
        return {"examples": self.examples, "steps": self._steps, "norms": int(self._norms), "sums": sums}

    def load_state_dict(self, state: dict[str, Any], *, device: torch.device) -> None:
        """Loads the sums. device: where the next steps are measured."""
        world = distributed.world()
        self._examples, self._steps = state["examples"] // world, state["steps"]
        self._norms = state.get("norms", self._steps)
        loss, metric, grad_norm = (value.to(device) for value in state["sums"])
        if world > 1:  # in the type of the steps, for the same rounding as before
            loss, metric, grad_norm = (loss / world).float(), (metric / world).float(), grad_norm.float()
        self._loss, self._metric, self._grad_norm = loss, metric, grad_norm

    def summary(self, prefix: str) -> dict[str, float]:
        """Returns ``<prefix>/loss`` and ``<prefix>/<metric>`` per example, and ``<prefix>/grad_norm`` per step.

        Steps that a scaler left out have no norm. Returns nothing before the first step.
        """
        if not self._steps:
            return {}
        sums = [float(self._loss), float(self._metric), float(self._grad_norm)]
        loss, metric, grad_norm = distributed.averaged(sums)
        norms = int(self._norms)
        return {
            f"{prefix}/loss": loss / self._examples,
            f"{prefix}/{self._name}": metric / self._examples,
            f"{prefix}/grad_norm": grad_norm / norms if norms else math.nan,
        }
