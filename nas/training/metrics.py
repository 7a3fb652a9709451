"""Measures for the final score beside a task's loss and metric, computed from sums over examples.

Sums take no more memory for more examples, can be added over processes, and are read from the device once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data.labels import IGNORED
from nas.errors import described

NORMAL_95 = 1.959963984540054  # two-sided 95 % point of the standard normal distribution
CALIBRATION_BINS = 15
TOP = 5
LARGEST_TABLE = 2048  # classes for which a whole table of confusions is kept: 32 MB
MOST_PAIRS = 2**20  # pairs of a true and a predicted class that are written at most: about 30 MB of JSON


class Measures(Protocol):
    """Collects batches of one pass over a split."""

    def add(self, outputs: Tensor, targets: Tensor, metric: Tensor) -> None:
        """Adds a batch. metric: (B,), the task's metric of each example. Must not wait for the device."""
        ...

    def results(self) -> dict[str, Any]:
        """Returns name -> value, as plain Python values."""
        ...


class Optional:
    """Measures that may fail without losing the score. After an error, each result is None.

    ``measures_reason`` then has the error. make: builds the measures. Their `names`, if they have that attribute, are
    the results that become None.
    """

    def __init__(self, make: Callable[[], Measures]) -> None:
        self._reason: str | None = None
        self._measures: Measures | None = None
        self._try(lambda: setattr(self, "_measures", make()))

    def add(self, outputs: Tensor, targets: Tensor, metric: Tensor) -> None:
        if self._measures is not None and self._reason is None:
            measures = self._measures
            self._try(lambda: measures.add(outputs, targets, metric))

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._measures is not None and self._reason is None:
            measures = self._measures
            self._try(lambda: found.update(measures.results()))
        if self._reason is None:
            return found
        return dict.fromkeys(getattr(self._measures, "names", ())) | {"measures_reason": self._reason}

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # out of memory, or any error of a user's own measures
            self._reason = described(error)


class MetricInterval:
    """A 95 % interval of the mean of any task's metric. name: the metric's name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self._total: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the results."""
        return (f"{self._name}_interval",)

    def add(self, outputs: Tensor, targets: Tensor, metric: Tensor) -> None:
        metric = precise(metric)
        self._count += len(metric)
        self._total += metric.sum()
        self._squares += metric.square().sum()

    def results(self) -> dict[str, Any]:
        interval = mean_interval(float(self._total), float(self._squares), self._count)
        return {f"{self._name}_interval": list(interval)}


class ClassificationMeasures(MetricInterval):
    """Measures for (B, classes, ...) scores and (B, ...) labels.

    If an example has several labels, e.g. one for each pixel, all measures but the interval count labels, not examples.
    Labels that are IGNORED are not counted.

    - ``<metric>_interval``: Wilson's, if an example is right or wrong;
    - ``top5_accuracy``: only for more than five classes;
    - ``balanced_accuracy`` and ``worst_class``: see `over_classes`;
    - ``negative_log_likelihood``: mean of -log p(label), for any training loss;
    - ``expected_calibration_error``: see `calibration_error`;
    - ``calibration``: for each of its bins the number of examples, their mean confidence, and the share that is right;
    - ``per_class``: accuracy (None for a class without examples) and number of examples;
    - ``confusion``: true class -> predicted class -> count, without zeros. If there are more than MOST_PAIRS entries,
      it is None and ``confusion_reason`` says why.

    Memory grows with the number of classes and of pairs that occur, not with the square of the number of classes.
    """

    def __init__(self, name: str, class_names: Sequence[str]) -> None:
        super().__init__(name)
        self._classes = class_names
        self._binary = True
        self._confusion: Confusion | None = None
        self._per_class: Tensor | None = None  # (classes, 2): number of labels, number of right predictions
        self._bins: Tensor | None = None  # (CALIBRATION_BINS, 3): number, sum of confidences, number right
        self._likelihood: Tensor | float = 0.0
        self._top: Tensor | int = 0

    @property
    def names(self) -> tuple[str, ...]:
        top = (f"top{TOP}_accuracy",) if len(self._classes) > TOP else ()
        return (*super().names, *top, *CLASSIFICATION)

    def add(self, outputs: Tensor, targets: Tensor, metric: Tensor) -> None:
        super().add(outputs, targets, metric)
        self._binary = targets.ndim == 1
        classes = len(self._classes)
        scores, labels = outputs.movedim(1, -1).reshape(-1, classes), targets.reshape(-1)
        log_probs = F.log_softmax(scores.float(), dim=1)
        log_confidence, predicted = log_probs.max(dim=1)
        confidence, correct, counted = log_confidence.exp(), predicted == labels, labels != IGNORED
        if self._confusion is None or self._bins is None or self._per_class is None:
            self._confusion = Confusion(classes, labels.device)
            self._per_class = labels.new_zeros(classes, 2)
            self._bins = precise(scores.new_zeros(CALIBRATION_BINS, 3))
        # Ignored labels are multiplied by 0. Removing them would wait for the device.
        self._confusion.add(labels * counted, predicted, counted)
        self._per_class.index_add_(0, labels * counted, torch.stack([counted, correct & counted], 1).to(labels.dtype))
        # Bin m of 1 .. M holds the confidences in ((m - 1)/M, m/M].
        bins = (confidence * CALIBRATION_BINS).ceil().long().sub(1).clamp(0, CALIBRATION_BINS - 1)
        rows = torch.stack([torch.ones_like(confidence), confidence, correct.float()], dim=1)
        self._bins.index_add_(0, bins, precise(rows * counted[:, None]))
        losses = F.nll_loss(log_probs, labels, reduction="none", ignore_index=IGNORED)
        self._likelihood += precise(losses).sum()
        if classes > TOP:
            self._top += (scores.topk(TOP, dim=1).indices == labels[:, None]).any(dim=1).sum()

    def results(self) -> dict[str, Any]:
        if self._confusion is None or self._bins is None or self._per_class is None:
            return {}
        classes = len(self._classes)
        counts: list[list[int]] = self._per_class.tolist()
        labels, right = (sum(column) for column in zip(*counts, strict=True))
        if not labels:
            raise ValueError("no label of the split counts, all are ignored")
        results = super().results()
        if self._binary:
            results = {f"{self._name}_interval": list(wilson_interval(right, labels))}
        if classes > TOP:
            results[f"top{TOP}_accuracy"] = int(self._top) / labels
        per_class = {
            name: {"accuracy": correct / examples if examples else None, "examples": examples}
            for name, (examples, correct) in zip(self._classes, counts, strict=True)
        }
        return {
            **results,
            **over_classes(per_class),
            "negative_log_likelihood": float(self._likelihood) / labels,
            "expected_calibration_error": calibration_error(self._bins.tolist()),
            "calibration": [[int(n), c / n, r / n] if n else [0, None, None] for n, c, r in self._bins.tolist()],
            "per_class": per_class,
            **self._confusion.results(self._classes),
        }


CLASSIFICATION = ("negative_log_likelihood", "expected_calibration_error", "calibration", "per_class", "confusion")


class Confusion:
    """Counts how often one class is taken for another.

    For few classes it keeps one table. For many it keeps the pairs that occur, so memory grows with their number: see
    MOST_PAIRS.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._table: Tensor | None = None  # (classes^2,)
        if classes <= LARGEST_TABLE:
            self._table = torch.zeros(classes**2, dtype=torch.int64, device=device)
        self._new: list[tuple[Tensor, Tensor]] = []  # pairs that are not merged yet, and whether each counts
        self._waiting = 0
        self._met: tuple[Tensor, Tensor] | None = None  # pairs and their counts, on the CPU
        self._too_many = False

    def add(self, labels: Tensor, predicted: Tensor, counts: Tensor) -> None:
        """Adds labels. labels, predicted: (n,) int64. counts: (n,) bool, whether a label is counted."""
        pairs = labels * self._classes + predicted
        if self._table is not None:
            self._table.index_add_(0, pairs, counts.to(pairs.dtype))
        elif not self._too_many:
            self._new.append((pairs, counts))
            self._waiting += len(pairs)
            if self._waiting > MOST_PAIRS:  # waits for the device, once in a million labels
                self._merge()

    def _merge(self) -> None:
        """Adds the new pairs to the counts of the earlier pairs."""
        pairs = [pairs[counts].cpu() for pairs, counts in self._new]
        self._new, self._waiting = [], 0
        many = [torch.ones_like(some) for some in pairs]
        if self._met is not None:
            pairs, many = [*pairs, self._met[0]], [*many, self._met[1]]
        met, places = torch.unique(torch.cat(pairs), return_inverse=True)
        self._met = met, torch.zeros_like(met).index_add_(0, places, torch.cat(many))
        if len(met) > MOST_PAIRS:
            self._met, self._too_many = None, True

    def results(self, names: Sequence[str]) -> dict[str, Any]:
        if self._table is not None:
            pairs = self._table.nonzero().squeeze(1)
            self._met = pairs, self._table[pairs]
        elif self._new:
            self._merge()
        if self._met is not None and len(self._met[0]) > MOST_PAIRS:
            self._too_many = True
        if self._too_many or self._met is None:
            reason = f"more than {MOST_PAIRS:,} pairs of classes were met"
            return {"confusion": None, "confusion_reason": reason}
        confusion: dict[str, dict[str, int]] = {name: {} for name in names}
        for pair, count in zip(*(part.tolist() for part in self._met), strict=True):
            label, predicted = divmod(pair, self._classes)
            confusion[names[label]][names[predicted]] = count
        return {"confusion": confusion}


class RegressionMeasures(MetricInterval):
    """Measures for outputs and targets of equal shape: ``root_mean_squared_error`` and ``r_squared``.

    ``r_squared`` is the part of the targets' variance that the outputs explain; None if the targets do not vary. Each
    number of a target varies around its own mean, so that 0 is what the best constant output reaches.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._values = 0
        self._errors: Tensor | float = 0.0  # squared
        # Minus the first target: sums of large numbers would round away a small variance, or make one out of none.
        self._first: Tensor | None = None
        self._targets: Tensor | float = 0.0  # of the shape of one target
        self._target_squares: Tensor | float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        return (*super().names, "root_mean_squared_error", "r_squared")

    def add(self, outputs: Tensor, targets: Tensor, metric: Tensor) -> None:
        super().add(outputs, targets, metric)
        outputs, targets = precise(outputs), precise(targets)
        self._values += targets.numel()
        self._errors += (outputs - targets).square().sum()
        self._first = targets[0] if self._first is None else self._first
        shifted = targets - self._first
        self._targets += shifted.sum(dim=0)
        self._target_squares += shifted.square().sum()

    def results(self) -> dict[str, Any]:
        errors = float(self._errors)
        means = torch.as_tensor(self._targets).square().sum() / self._count
        variation = float(self._target_squares - means)
        return {
            **super().results(),
            "root_mean_squared_error": math.sqrt(errors / self._values),
            "r_squared": 1 - errors / variation if variation > 0 else None,
        }


def over_classes(per_class: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns ``balanced_accuracy`` and ``worst_class``.

    ``balanced_accuracy`` is the mean accuracy of the classes that have examples, so that a common class has no more
    weight. ``worst_class`` is the class of the lowest accuracy; of several such classes, the one with the most
    examples.
    """
    measured = {name: one for name, one in per_class.items() if one["accuracy"] is not None}
    if not measured:
        return {"balanced_accuracy": None, "worst_class": None}
    worst = min(measured, key=lambda name: (measured[name]["accuracy"], -measured[name]["examples"]))
    return {
        "balanced_accuracy": math.fsum(one["accuracy"] for one in measured.values()) / len(measured),
        "worst_class": {"name": worst, **measured[worst]},
    }


def precise(values: Tensor) -> Tensor:
    """Returns the values in double precision, for sums over a whole data set; in float if the device has no double."""
    return values.float() if values.device.type == "mps" else values.double()


def single(values: Tensor) -> Tensor:
    """Returns the values in float32 or wider: a sum in 16 bits stops growing at some hundred times its summands."""
    return values if values.dtype is torch.float32 else values.to(torch.promote_types(values.dtype, torch.float32))


def single_sum(values: Tensor) -> Tensor:
    """Returns the sum of the values in float32 or wider."""
    return values.sum(dtype=torch.promote_types(values.dtype, torch.float32))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Returns the 95 % score interval of a proportion.

    It has all p from which the observed proportion is less than 1.96 standard errors away. Unlike the normal
    approximation it stays in [0, 1], and it is not a single point at 0 and 1. Source: Wilson 1927.
    """
    p, z2 = successes / trials, NORMAL_95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = NORMAL_95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    # Without min and max, rounding could put an observed proportion of 0 or 1 outside its own interval.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def mean_interval(total: float, squares: float, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of `count` values, by the normal approximation.

    total, squares: the sums of the values and of their squares.
    """
    mean = total / count
    variance = max(0.0, squares - total * mean) / max(1, count - 1)
    half = NORMAL_95 * math.sqrt(variance / count)
    return mean - half, mean + half


def calibration_error(bins: Sequence[Sequence[float]]) -> float:
    """Returns the expected calibration error.

    This is the mean over examples of |accuracy - confidence| of the example's bin. The confidence is the largest
    softmax probability; all bins are equally wide in confidence.
    bins: for each bin, the number of examples, the sum of their confidences, and the number that were right. Source:
    Guo et al. 2017, eq. 3.
    """
    return sum(abs(right - confidence) for _, confidence, right in bins) / sum(count for count, _, _ in bins)
