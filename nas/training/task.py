"""Tasks: what a network is trained for, and how it is scored.

A task is any class with the methods of `Task`. Both levels of a search, retraining and the final score use it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data.bundle import Split
from nas.data.inputs import form
from nas.data.labels import IGNORED, check_labels
from nas.data.spec import DataSpec
from nas.errors import ConfigError, DataError, NasError, SpaceError, described
from nas.training.metrics import ClassificationMeasures, Measures, MetricInterval, RegressionMeasures
from nas.training.weighing import OnDevice, Weigh, known_weights, label_weights

TAKEN = ("loss", "grad_norm", "examples")  # names of what metrics and results hold beside the metric


@dataclass(frozen=True)
class Metric:
    """The metric that a task reports beside its loss: a mean over the examples.

    name: as in ``metrics.jsonl`` and ``result.json``, e.g. ``accuracy``. percent: printed as a percentage.
    """

    name: str
    higher_is_better: bool
    percent: bool = False

    def __post_init__(self) -> None:
        if self.name in TAKEN or not self.name:
            raise ConfigError(
                f"the metric is called {self.name!r}, expected another name than {', '.join(TAKEN)}, which stand "
                "beside it",
                fix="set task.name=score",
            )

    def show(self, value: float) -> str:
        return f"{value:.2%}" if self.percent else f"{value:.4g}"


class Task(Protocol):
    """A loss and a metric. No method may wait for the device.

    outputs: what the network returned for a batch. targets: of the batch.
    output: describes the network's output, for users of an exported network.
    """

    metric: Metric
    output: str

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of a batch, a scalar: the mean over its examples, with the weights of `weights`."""
        ...

    def weights(self, targets: Tensor) -> Tensor | None:
        """Returns (B,), at least 0: the weight of each example in the mean of the loss, or None if all are equal.

        The weight is e.g. the number of labels of the example that count. The losses of parts of a batch, and of the
        batches of a split, are combined by these weights.
        """
        ...

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns (B,): the metric of every example."""
        ...

    def measures(self, spec: DataSpec) -> Measures:
        """Returns a new collector of other measures for the final score, for data described by `spec`."""
        ...

    def check(self, outputs: Tensor, targets: Tensor, spec: DataSpec) -> None:
        """Checks a batch of one or two examples before training.

        Raises DataError if the data do not suit the task, SpaceError if the model does not.
        """
        ...


class Classification:
    """Cross-entropy and accuracy.

    outputs: (B, classes, ...) scores. targets: (B, ...) int64 labels, or in training (B, classes, ...) probabilities; a
    prediction then scores the probability of its class. If an example has several labels, those that are IGNORED are
    not counted.
    """

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
        # If every pixel has a label, the accuracy of an example is that of its pixels.
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
        if targets.is_floating_point():
            raise DataError(
                f"task=classification needs class labels as targets, got {targets.dtype} of shape "
                f"{tuple(targets.shape[1:])} from {spec.name!r}",
                fix="give each label as an integer",
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
    metric: (outputs, targets) -> (B,), the value of every example. name: of the metric.
    weight: (targets) -> (B,), the weight of each example in the mean of the loss, e.g. how many of its labels count.
    None: the weights of torch's cross-entropy or negative log-likelihood, if the loss is one of them; else equal
    weights.
    loss and metric may be modules, such as torch.nn.CrossEntropyLoss, or partials of modules and functions.
    Raises ConfigError if the loss is one of torch's and sums over the batch.
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
        self._loss = OnDevice(loss)
        self._measure = OnDevice(metric)
        self._given = {"loss": loss, "metric": metric}
        self._weight = weight
        known_weights(self._loss.function)  # raises for a sum over the batch

    def described(self) -> dict[str, object]:
        """Returns the arguments of the constructor."""
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
        check_value("loss", self.loss, outputs, targets, expected=())
        check_value("metric", self.measure, outputs, targets, expected=(len(targets),))
        if self._weight is not None:
            check_value("weight", self._weight, targets, expected=(len(targets),))


def check_value(
    what: str, function: Callable[..., Any], *given: Tensor, expected: Sequence[int], may_fail: bool = False
) -> None:
    """Raises ConfigError unless a function of a task, task.`what` in messages, returns a tensor of the expected shape.
    given: outputs and targets, or targets alone. may_fail: do nothing about an error that the function raises."""
    of = "outputs and targets" if len(given) > 1 else "targets"
    try:
        value = function(*given)
    except NasError:
        raise
    except Exception as error:  # a user's own function may raise any error
        if may_fail:
            return
        raise ConfigError(
            f"task.{what} fails on {of} of {' and '.join(map(form, given))} ({described(error)})",
            fix=f"correct task.{what} or its arguments; --debug shows where it stopped",
        ) from error
    if value is None and what == "weights":  # all are equal
        return
    if not isinstance(value, Tensor) or value.shape != tuple(expected):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"task.{what} returned {got} for {len(given[-1])} examples, expected a tensor of shape {tuple(expected)}",
            fix=f"let task.{what} return a number for each example"
            if len(given) == 1
            else "let the loss return its mean over the batch, and the metric a value for each example",
        )


def check_targets(task: Task, spec: DataSpec, **splits: Split) -> None:
    """Checks whole splits for what `Task.check` cannot see in two examples: the labels of all examples.

    splits: name -> split. Does nothing for a user's own task, which may have other labels. Raises DataError.
    """
    if isinstance(task, Classification):
        for what, split in splits.items():
            check_labels(split, spec, what)
