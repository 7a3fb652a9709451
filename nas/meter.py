"""What steps measure, averaged over an epoch without waiting for the device in between."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step measured, still on the device: reading it is left to whoever can afford to wait.

    loss: mean over the batch; metric: the task's, summed over the batch; examples: in the batch; grad_norm: before
    clipping.
    """

    loss: Tensor
    metric: Tensor
    examples: int
    grad_norm: Tensor


class Meter:
    """Sums step results on the device and reads them once, in `summary`. metric: its name."""

    def __init__(self, metric: str) -> None:
        self.examples = 0
        self._name = metric
        self._steps = 0
        self._loss: Tensor | float = 0.0
        self._metric: Tensor | float = 0.0
        self._grad_norm: Tensor | float = 0.0

    def add(self, result: StepResult) -> None:
        self.examples += result.examples
        self._steps += 1
        self._loss += result.loss * result.examples
        self._metric += result.metric
        self._grad_norm += result.grad_norm

    def summary(self, prefix: str) -> dict[str, float]:
        """``<prefix>/loss`` and ``<prefix>/<metric>`` by example, ``<prefix>/grad_norm`` by step; empty before the
        first step."""
        if not self._steps:
            return {}
        return {
            f"{prefix}/loss": float(self._loss) / self.examples,
            f"{prefix}/{self._name}": float(self._metric) / self.examples,
            f"{prefix}/grad_norm": float(self._grad_norm) / self._steps,
        }
