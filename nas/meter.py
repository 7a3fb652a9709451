"""What steps measure, averaged over an epoch without waiting for the device in between."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step measured, still on the device: reading it is left to whoever can afford to wait.

    loss: mean over the batch; correct: images classified correctly; images: in the batch; grad_norm: before clipping.
    """

    loss: Tensor
    correct: Tensor
    images: int
    grad_norm: Tensor


class Meter:
    """Sums step results on the device and reads them once, in `summary`."""

    def __init__(self) -> None:
        self.images = 0
        self._steps = 0
        self._loss: Tensor | float = 0.0
        self._correct: Tensor | float = 0.0
        self._grad_norm: Tensor | float = 0.0

    def add(self, result: StepResult) -> None:
        self.images += result.images
        self._steps += 1
        self._loss += result.loss * result.images
        self._correct += result.correct
        self._grad_norm += result.grad_norm

    def summary(self, prefix: str) -> dict[str, float]:
        """``<prefix>/loss`` and ``<prefix>/accuracy`` in [0, 1], by image; ``<prefix>/grad_norm``, by step."""
        images, steps = max(1, self.images), max(1, self._steps)
        return {
            f"{prefix}/loss": float(self._loss) / images,
            f"{prefix}/accuracy": float(self._correct) / images,
            f"{prefix}/grad_norm": float(self._grad_norm) / steps,
        }
