"""What steps measure, averaged over an epoch without waiting for the device in between."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.runtime import distributed


@dataclass(frozen=True)
class StepResult:
    """What a step measured, still on the device: reading it is left to whoever can afford to wait.

    loss: mean over the batch; metric: the task's, summed over the batch; examples: in the batch; grad_norm: before
    clipping. skipped: it counts for nothing, as it was not finite.
    """

    loss: Tensor
    metric: Tensor
    examples: int
    grad_norm: Tensor
    skipped: bool = False


class Meter:
    """Sums step results on the device and reads them once, in `summary`: over all processes, which call it together.
    metric: its name."""

    def __init__(self, metric: str) -> None:
        self._examples = 0
        self._name = metric
        self._steps = 0
        self._loss: Tensor | float = 0.0
        self._metric: Tensor | float = 0.0
        self._grad_norm: Tensor | float = 0.0

    @property
    def examples(self) -> int:
        """Of all processes, which have equally many."""
        return self._examples * distributed.world()

    def add(self, result: StepResult) -> None:
        if result.skipped:
            return
        self._examples += result.examples
        self._steps += 1
        self._loss += result.loss * result.examples
        self._metric += result.metric
        self._grad_norm += result.grad_norm

    def state_dict(self) -> dict[str, Any]:
        """Of all processes, which call it together, so that as many others can go on from it."""
        sums = [torch.as_tensor(value).clone() for value in (self._loss, self._metric, self._grad_norm)]
        if (world := distributed.world()) > 1:
            loss, metric, grad_norm = distributed.means(value.double() for value in sums)
            sums = [world * loss, world * metric, grad_norm]  # which all have measured of the same steps
        return {"examples": self.examples, "steps": self._steps, "sums": sums}

    def load_state_dict(self, state: dict[str, Any], *, device: torch.device) -> None:
        """device: where the steps to come will be measured."""
        world = distributed.world()
        self._examples, self._steps = state["examples"] // world, state["steps"]
        loss, metric, grad_norm = (value.to(device) for value in state["sums"])
        if world > 1:  # in the type that steps are measured in, to go on with the same roundings
            loss, metric, grad_norm = (loss / world).float(), (metric / world).float(), grad_norm.float()
        self._loss, self._metric, self._grad_norm = loss, metric, grad_norm

    def summary(self, prefix: str) -> dict[str, float]:
        """``<prefix>/loss`` and ``<prefix>/<metric>`` by example, ``<prefix>/grad_norm`` by step; empty before the
        first step."""
        if not self._steps:
            return {}
        sums = [float(self._loss), float(self._metric), float(self._grad_norm)]
        loss, metric, grad_norm = distributed.averaged(sums)
        return {
            f"{prefix}/loss": loss / self._examples,
            f"{prefix}/{self._name}": metric / self._examples,
            f"{prefix}/grad_norm": grad_norm / self._steps,
        }
