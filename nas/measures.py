"""What the final score measures beside a task's loss and metric, as sums over examples.

Sums, because they need no more memory for more examples, add up over processes, and are read from the device once.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data.labels import IGNORED

NORMAL_95 = 1.959963984540054  # two-sided 95 % point of the standard normal distribution
CALIBRATION_BINS = 15
TOP = 5


class Measures(Protocol):
    """Collects batches of one pass over a split."""

    def add(self, outputs: Tensor, targets: Tensor, metric: Tensor) -> None:
        """metric: (B,), the task's, of the examples. Nothing here may wait for the device."""
        ...

    def results(self) -> dict[str, Any]:
        """name -> value, of plain Python values."""
        ...


class MetricInterval:
    """For any task: a 95 % interval of its metric's mean. name: the metric's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self._total: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, outputs: Tensor, targets: Tensor, metric: Tensor) -> None:
        metric = precise(metric)
        self._count += len(metric)
        self._total += metric.sum()
        self._squares += metric.square().sum()

    def results(self) -> dict[str, Any]:
        interval = mean_interval(float(self._total), float(self._squares), self._count)
        return {f"{self._name}_interval": list(interval)}


class ClassificationMeasures(MetricInterval):
    """Of (B, classes, ...) scores and (B, ...) labels; where an example has several labels, as every pixel has one,
    all but the interval count labels, not examples. Labels that are IGNORED count for nothing.

    - ``<metric>_interval``: Wilson's, where an example is right or wrong;
    - ``top5_accuracy``, of more than five classes;
    - ``balanced_accuracy`` and ``worst_class``: see `over_classes`;
    - ``negative_log_likelihood``: mean of -log p(label), whatever the loss was;
    - ``expected_calibration_error``: see `calibration_error`;
    - ``per_class``: accuracy (None of a class without examples) and number of examples;
    - ``confusion``: true class -> predicted class -> how often, without zeros.
    """

    def __init__(self, name: str, class_names: Sequence[str]) -> None:
        super().__init__(name)
        self._classes = class_names
        self._binary = True
        self._confusion: Tensor | None = None  # (classes^2,)
        self._bins: Tensor | None = None  # (CALIBRATION_BINS, 3): how many, their confidence, how many were right
        self._likelihood: Tensor | float = 0.0
        self._top: Tensor | int = 0

    def add(self, outputs: Tensor, targets: Tensor, metric: Tensor) -> None:
        super().add(outputs, targets, metric)
        self._binary = targets.ndim == 1
        classes = len(self._classes)
        scores, labels = outputs.movedim(1, -1).reshape(-1, classes), targets.reshape(-1)
        log_probs = F.log_softmax(scores.float(), dim=1)
        log_confidence, predicted = log_probs.max(dim=1)
        confidence, correct, counted = log_confidence.exp(), predicted == labels, labels != IGNORED
        if self._confusion is None or self._bins is None:
            self._confusion = labels.new_zeros(classes**2)
            self._bins = precise(scores.new_zeros(CALIBRATION_BINS, 3))
        # Multiplied by 0 what does not count, rather than left out, for which the device would be waited for.
        self._confusion.index_add_(0, labels * counted * classes + predicted, counted.to(labels.dtype))
        # Bin m of 1 .. M holds the confidences in ((m - 1)/M, m/M].
        bins = (confidence * CALIBRATION_BINS).ceil().long().sub(1).clamp(0, CALIBRATION_BINS - 1)
        rows = torch.stack([torch.ones_like(confidence), confidence, correct.float()], dim=1)
        self._bins.index_add_(0, bins, precise(rows * counted[:, None]))
        losses = F.nll_loss(log_probs, labels, reduction="none", ignore_index=IGNORED)
        self._likelihood += precise(losses).sum()
        if classes > TOP:
            self._top += (scores.topk(TOP, dim=1).indices == labels[:, None]).any(dim=1).sum()

    def results(self) -> dict[str, Any]:
        if self._confusion is None or self._bins is None:
            return {}
        classes = len(self._classes)
        confusion = self._confusion.view(classes, classes).tolist()
        labels, right = sum(map(sum, confusion)), sum(confusion[k][k] for k in range(classes))
        results = super().results()
        if self._binary:
            results = {f"{self._name}_interval": list(wilson_interval(right, labels))}
        if classes > TOP:
            results[f"top{TOP}_accuracy"] = int(self._top) / labels
        per_class = {
            name: {"accuracy": row[k] / sum(row) if any(row) else None, "examples": sum(row)}
            for k, (name, row) in enumerate(zip(self._classes, confusion, strict=True))
        }
        return {
            **results,
            **over_classes(per_class),
            "negative_log_likelihood": float(self._likelihood) / labels,
            "expected_calibration_error": calibration_error(self._bins.tolist()),
            "per_class": per_class,
            "confusion": {
                name: {other: count for other, count in zip(self._classes, row, strict=True) if count}
                for name, row in zip(self._classes, confusion, strict=True)
            },
        }


class RegressionMeasures(MetricInterval):
    """Of outputs and targets of equal shape: ``root_mean_squared_error``, and ``r_squared``, the part of the targets'
    variance that the outputs explain (None if they have none)."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._values = 0
        self._errors: Tensor | float = 0.0  # squared
        self._targets: Tensor | float = 0.0
        self._target_squares: Tensor | float = 0.0

    def add(self, outputs: Tensor, targets: Tensor, metric: Tensor) -> None:
        super().add(outputs, targets, metric)
        outputs, targets = precise(outputs), precise(targets)
        self._values += targets.numel()
        self._errors += (outputs - targets).square().sum()
        self._targets += targets.sum()
        self._target_squares += targets.square().sum()

    def results(self) -> dict[str, Any]:
        errors = float(self._errors)
        variation = float(self._target_squares) - float(self._targets) ** 2 / self._values
        return {
            **super().results(),
            "root_mean_squared_error": math.sqrt(errors / self._values),
            "r_squared": 1 - errors / variation if variation > 0 else None,
        }


def over_classes(per_class: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``balanced_accuracy``, the mean of the accuracies of the classes that have examples, which a common class cannot
    carry alone; and ``worst_class``, the one of the lowest accuracy, of several that with the most examples."""
    measured = {name: one for name, one in per_class.items() if one["accuracy"] is not None}
    if not measured:
        return {"balanced_accuracy": None, "worst_class": None}
    worst = min(measured, key=lambda name: (measured[name]["accuracy"], -measured[name]["examples"]))
    return {
        "balanced_accuracy": math.fsum(one["accuracy"] for one in measured.values()) / len(measured),
        "worst_class": {"name": worst, **measured[worst]},
    }


def precise(values: Tensor) -> Tensor:
    """In the precision that sums over a whole data set need: double, where the device has it."""
    return values.float() if values.device.type == "mps" else values.double()


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a proportion: of all p, those from which the observed one is less than 1.96 standard
    errors away. Unlike the normal approximation it stays in [0, 1] and is no point at 0 and 1. Source: Wilson 1927."""
    p, z2 = successes / trials, NORMAL_95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = NORMAL_95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    # Rounding could leave the observed proportion itself outside when it is 0 or 1.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def mean_interval(total: float, squares: float, count: int) -> tuple[float, float]:
    """95 % interval of the mean of `count` values by the normal approximation. total, squares: the sums of the values
    and of their squares."""
    mean = total / count
    variance = max(0.0, squares - total * mean) / max(1, count - 1)
    half = NORMAL_95 * math.sqrt(variance / count)
    return mean - half, mean + half


def calibration_error(bins: Sequence[Sequence[float]]) -> float:
    """Expected calibration error: the mean over examples of |accuracy - confidence| of the bin an example is in, where
    the bins are equally wide in confidence, the largest softmax probability.

    bins: for each, how many, the sum of their confidences, and how many were right. Source: Guo et al. 2017, eq. 3.
    """
    return sum(abs(right - confidence) for _, confidence, right in bins) / sum(count for count, _, _ in bins)
