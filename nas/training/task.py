"""Tasks: what a network is trained for, and by what it is judged.

A task is any class of the form of `Task`. Both levels of a search, retraining and the final score go through it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data.bundle import Split
from nas.data.labels import IGNORED, check_labels
from nas.data.spec import DataSpec
from nas.errors import ConfigError, DataError, NasError, SpaceError, described
from nas.training.metrics import ClassificationMeasures, Measures, MetricInterval, RegressionMeasures
from nas.training.weighing import OnDevice, Weigh, known_weights, label_weights


@dataclass(frozen=True)
class Metric:
    """What a task reports beside its loss: a mean over the examples.

    name: as in ``metrics.jsonl`` and ``result.json``, e.g. ``accuracy``. percent: shown to people as a percentage.
    """

    name: str
    higher_is_better: bool
    percent: bool = False

    def show(self, value: float) -> str:
        return f"{value:.2%}" if self.percent else f"{value:.4g}"


class Task(Protocol):
    """outputs: what the network returned for a batch; targets: of the batch. Nothing here may wait for the device.

    output: what the network's output is, in words, for who uses an exported one.
    """

    metric: Metric
    output: str

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch, a scalar: of its examples, each as `weights` says."""
        ...

    def weights(self, targets: Tensor) -> Tensor | None:
        """(B,), at least 0: how each example weighs in the mean that the loss is, e.g. how many of its labels count;
        None where all weigh alike. The loss of a batch in parts, and of a whole split, is put together by it."""
        ...

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,): the metric of every example."""
        ...

    def measures(self, spec: DataSpec) -> Measures:
        """Of the final score, beside loss and metric: a new collector for data of that kind."""
        ...

    def check(self, outputs: Tensor, targets: Tensor, spec: DataSpec) -> None:
        """Called before training on a batch of one or two examples. Raises DataError or SpaceError, saying which of
        the data and the model does not suit the task."""
        ...


class Classification:
    """Cross-entropy and accuracy. outputs: (B, classes, ...) scores; targets: (B, ...) int64 labels, or in training
    (B, classes, ...) probabilities, of which a prediction earns that of its class. Of several labels of an example
    some may be IGNORED, and count for nothing."""

    metric = Metric("accuracy", higher_is_better=True, percent=True)
    output = "float32 (batch, classes): scores before the softmax, in the order of class_names"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, ignore_index=IGNORED)

    def weights(self, targets: Tensor) -> Tensor | None:
        return label_weights(targets, ignore_index=IGNORED)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        predicted = outputs.argmax(dim=1)
        if targets.is_floating_point():
            correct = targets.gather(1, predicted.unsqueeze(1)).squeeze(1)
        else:
            correct = predicted == targets
        if correct.ndim == 1:
            return correct
        # Of a label for every pixel, an example's accuracy is that of its pixels.
        counted = torch.ones_like(predicted) if targets.is_floating_point() else targets != IGNORED
        return correct.flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1)

    def measures(self, spec: DataSpec) -> ClassificationMeasures:
        return ClassificationMeasures(self.metric.name, spec.class_names)

    def check(self, outputs: Tensor, targets: Tensor, spec: DataSpec) -> None:
        if not spec.class_names:
            raise DataError(
                f"task=classification needs class labels as targets, got {targets.dtype} of shape "
                f"{spec.target_shape} from {spec.name!r}",
                fix="return each label as an integer, name the classes in data.classes, or set task=regression",
            )
        expected = (len(targets), spec.num_classes, *targets.shape[1:])
        if outputs.shape != expected:
            raise SpaceError(
                f"the model gives outputs of shape {tuple(outputs.shape)} for {len(targets)} examples, expected "
                f"{expected}: a score for each of {spec.num_classes} classes",
                fix="let the factory ask for num_classes, and make its last layer that wide",
            )


class Regression:
    """Mean squared error and mean absolute error. outputs and targets: (B, ...) floats of equal shape."""

    metric = Metric("mean_absolute_error", higher_is_better=False)
    output = "float32 (batch, ...): the predicted values, as the targets were"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets)

    def weights(self, targets: Tensor) -> Tensor | None:
        return None

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        error = (outputs - targets).abs()
        return error if error.ndim == 1 else error.flatten(1).mean(dim=1)

    def measures(self, spec: DataSpec) -> RegressionMeasures:
        return RegressionMeasures(self.metric.name)

    def check(self, outputs: Tensor, targets: Tensor, spec: DataSpec) -> None:
        if not targets.is_floating_point():
            raise DataError(
                f"task=regression needs floats as targets, got {targets.dtype} from {spec.name!r}",
                fix="return the targets as floats, or set task=classification",
            )
        # (B, 1) against (B,) would broadcast to all pairs and train towards the mean.
        if outputs.shape != targets.shape:
            raise SpaceError(
                f"the model gives outputs of shape {tuple(outputs.shape)}, expected that of the targets, "
                f"{tuple(targets.shape)}",
                fix="make the last layer as wide as a target, and squeeze it where a target is one number",
            )


class Custom:
    """A loss and a metric of the user's own.

    loss: (outputs, targets) -> scalar, the mean over the batch.
    metric: (outputs, targets) -> (B,), the value of every example; `name` is what it is called.
    weight: (targets) -> (B,), how each example weighs in the mean that the loss is, e.g. how many of its labels count.
    None: as torch's cross-entropy and negative log-likelihood weigh, if the loss is one of these, or else all alike.
    loss and metric may be modules, such as torch.nn.CrossEntropyLoss, or partials of modules and functions.
    Raises ConfigError for a loss of torch's that is a sum over the batch.
    """

    output = "what the model returns"

    def __init__(
        self,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        metric: Callable[[Tensor, Tensor], Tensor],
        name: str,
        higher_is_better: bool,
        percent: bool = False,
        weight: Weigh | None = None,
    ) -> None:
        self.metric = Metric(name, higher_is_better, percent)
        self._given = {"loss": loss, "metric": metric}
        self._loss = OnDevice(loss)
        self._measure = OnDevice(metric)
        self._weight = weight
        known_weights(self._loss.function)  # refuses sums

    def described(self) -> dict[str, object]:
        """The arguments it was made with."""
        name, higher, percent = self.metric.name, self.metric.higher_is_better, self.metric.percent
        return {**self._given, "name": name, "higher_is_better": higher, "percent": percent, "weight": self._weight}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self._loss(outputs, targets)
        return loss

    def weights(self, targets: Tensor) -> Tensor | None:
        weigh = self._weight or known_weights(self._loss.function)
        return None if weigh is None else weigh(targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        measured: Tensor = self._measure(outputs, targets)
        return measured

    def measures(self, spec: DataSpec) -> MetricInterval:
        return MetricInterval(self.metric.name)

    def check(self, outputs: Tensor, targets: Tensor, spec: DataSpec) -> None:
        checks: list[tuple[str, Callable[..., Any], tuple[Tensor, ...], tuple[int, ...]]] = [
            ("loss", self.loss, (outputs, targets), ()),
            ("metric", self.measure, (outputs, targets), (len(targets),)),
        ]
        if self._weight is not None:
            checks.append(("weight", self._weight, (targets,), (len(targets),)))
        for what, function, given, expected in checks:
            try:
                value: Any = function(*given)
            except NasError:
                raise
            except Exception as error:  # whatever a user's own function makes of them
                forms = " and ".join(f"{str(tensor.dtype)[6:]} {tuple(tensor.shape)}" for tensor in given)
                raise ConfigError(
                    f"task.{what} fails on {'targets' if what == 'weight' else 'outputs and targets'} of {forms} "
                    f"({described(error)})",
                    fix=f"correct task.{what} or its arguments; --debug shows where it stopped",
                ) from error
            if not isinstance(value, Tensor) or value.shape != expected:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ConfigError(
                    f"task.{what} returned {got} for {len(targets)} examples, expected a tensor of shape {expected}",
                    fix="let task.weight return a number for each example"
                    if what == "weight"
                    else "let the loss return its mean over the batch, and the metric a value for each example",
                )


def check_targets(task: Task, spec: DataSpec, **splits: Split) -> None:
    """Of whole splits, by name, what `Task.check` cannot see of two examples. A loss of the user's own may know other
    labels. Raises DataError."""
    if isinstance(task, Classification):
        for what, split in splits.items():
            check_labels(split, spec, what)
