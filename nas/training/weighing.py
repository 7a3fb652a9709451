"""The weights of the examples of a batch in its loss, which is a mean over them.

The loss of a whole batch is the weighted mean of the losses of its parts. Gradient accumulation, several processes and
the batches of a score make such parts. The weight of a part is its number of examples, unless the loss ignores some
labels or weighs classes.
"""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.runtime import distributed
from nas.training.metrics import precise, single

# (targets) -> (B,): the weight of each example, at least 0; None if all are equal.
Weigh = Callable[[Tensor], Tensor | None]

WEIGHTED_FUNCTIONS = (F.cross_entropy, F.nll_loss)
WEIGHTED_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss)


def weights_of(task: Any, targets: Tensor) -> Tensor | None:
    """Returns (B,): the weight of each example in the task's loss, or None if all are equal.

    The type is float64 if the device has it. A task without a method `weights` has equal weights.
    """
    weigh = getattr(task, "weights", None)
    found: Tensor | None = None if weigh is None else weigh(targets)
    return None if found is None else precise(found)


def label_weights(targets: Tensor, *, ignore_index: int, weight: Tensor | None = None) -> Tensor | None:
    """Returns (B,): the weights of examples in torch's cross-entropy, or None if all are equal.

    targets: (B, ...) labels. A label has the weight of its class in `weight`, (classes,), or 0 if it equals
    `ignore_index`. Targets that are floats are probabilities of classes, and have equal weights.
    """
    if targets.is_floating_point():
        return None
    counted = targets != ignore_index
    weights = precise(counted)
    if weight is not None:
        weights = weights * precise(weight.to(targets.device))[targets.clamp(0, len(weight) - 1)]
    return weights.flatten(1).sum(dim=1) if weights.ndim > 1 else weights


def known_weights(loss: Callable[..., Any], *, name: str = "task.loss") -> Weigh | None:
    """Returns how examples are weighed in torch's cross-entropy or negative log-likelihood; None for any other loss.

    The loss may be a function, a module, or a partial of one. Raises ConfigError if such a loss sums over the batch.
    """
    given: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        given = loss.keywords | given
        loss = loss.func
    if isinstance(loss, nn.Module) and type(loss).forward in [module.forward for module in WEIGHTED_MODULES]:
        given = {key: getattr(loss, key) for key in ("weight", "ignore_index", "reduction")}
    elif not any(loss is function for function in WEIGHTED_FUNCTIONS):
        return None
    if given.get("reduction", "mean") == "sum" or given.get("size_average") is False:
        raise ConfigError(
            f"{name} sums over the batch, expected its mean", fix=f"leave {name}.reduction out, or set it to mean"
        )
    return functools.partial(label_weights, ignore_index=given.get("ignore_index", -100), weight=given.get("weight"))


class OnDevice:
    """A loss or metric whose tensors are moved to the device of the outputs it gets.

    function: a function, a module, or a partial of one. A partial of a class, as in a configuration, is called to make
    the object. Lists in a partial become tensors if the signature has a tensor there.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = with_tensors(function)
        made = self.function.func if isinstance(self.function, functools.partial) else self.function
        if isinstance(made, type):
            self.function = self.function()
        self._form: tuple[torch.device, bool] | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        form = (outputs.device, outputs.dtype == torch.float64)
        if form != self._form:
            self._form = form
            self._move(*form)
        return self.function(outputs, targets)

    def _move(self, device: torch.device, double: bool) -> None:
        """Moves the tensors to the device.

        Floats become float64 if the outputs are float64, or else keep their type.
        """
        if isinstance(self.function, nn.Module):
            self.function.to(device)
            if double:
                self.function.double()
            elif type(self.function).__module__.startswith("torch.nn."):  # whose buffers are weights, e.g. of NumPy
                for name, weights in self.function.named_buffers(recurse=False):
                    self.function.register_buffer(name, weights.float())
        elif isinstance(self.function, functools.partial):
            keywords = self.function.keywords.copy()
            for key, value in keywords.items():
                if isinstance(value, Tensor):
                    of_torch = self.function.func.__module__ == F.__name__
                    single = torch.float32 if of_torch and value.dtype == torch.float64 else None
                    keywords[key] = value.to(device, torch.float64 if double and value.is_floating_point() else single)
            self.function = functools.partial(self.function.func, *self.function.args, **keywords)


def with_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a partial with its lists of numbers as tensors where the signature has tensors.

    A configuration cannot hold tensors.
    """
    if not isinstance(function, functools.partial):
        return function
    try:
        parameters = inspect.signature(function.func).parameters
    except (TypeError, ValueError):  # some functions that are not written in Python have no signature
        return function
    keywords = {
        key: torch.tensor(value, dtype=torch.get_default_dtype())
        if isinstance(value, list | tuple) and key in parameters and "Tensor" in str(parameters[key].annotation)
        else value
        for key, value in function.keywords.items()
    }
    return functools.partial(function.func, *function.args, **keywords)


class WeighedLoss:
    """Scales the losses of the parts of one batch, so that they add up to the loss of the whole batch.

    targets: of this process's share of the batch. count: number of parts in this process. Several processes build it
    together. The loss of the whole batch is the mean over the processes of the sum over the parts of what `loss`
    returns. `part` gives the one of a part, counted from 0.
    """

    def __init__(self, task: Any, targets: Tensor, *, count: int = 1) -> None:
        self._task = task
        self._examples = targets.shape[0]
        self._number = 0
        self._weights: Sequence[Tensor] | None = None
        if count == 1 and distributed.world() == 1:
            return  # the part is the whole batch
        weights = weights_of(task, targets)
        if weights is not None:
            (whole,) = distributed.means([weights.sum()])
            self._whole = whole
            self._weights = [part.sum() for part in weights.tensor_split(count)]

    def part(self, number: int) -> "WeighedLoss":
        made = copy.copy(self)
        made._number = number
        return made

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of the part, times its weight in the batch.

        If no label of a part counts, its loss is 0 / 0. Such a part adds 0 and no gradient. If no label of the whole
        batch counts, the loss stays NaN. A teacher's term weighs all examples alike, see `Distilled`.
        """
        share = targets.shape[0] / self._examples  # the parts may differ by one example
        if self._weights is None:
            found: Tensor = self._task.loss(outputs, targets)
            return found if share == 1 else found * share
        taught: Callable[..., Tensor] | None = getattr(self._task, "taught", None)
        if taught is None:
            return self._weighed(self._task.loss, outputs, targets)
        return taught(outputs, targets, share, weighed=self._weighed)

    def _weighed(self, loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
        assert self._weights is not None  # asked by `loss`
        weight = self._weights[self._number]
        counts = (weight > 0) | (self._whole == 0)
        if outputs.requires_grad:
            outputs = outputs.view_as(outputs)  # only for this loss: other terms of the outputs keep their gradient
            outputs.register_hook(functools.partial(gradient_if, counts))
        found = loss(outputs, targets)
        return torch.where(counts, found * (weight / self._whole).to(found.dtype), 0)


def gradient_if(counts: Tensor, gradient: Tensor) -> Tensor:
    """Returns zeros instead of a gradient that may be NaN. An `if` would make the host wait for the device."""
    return torch.where(counts, gradient, 0)


def how_parts_add_up(task: Any, outputs: Tensor, targets: Tensor) -> str:
    """Compares the loss of a batch with the losses of its halves.

    Returns ``mean`` if it is their mean by the task's weights, ``sum`` if it is their sum, and else ``other``. Also
    returns ``mean`` if the halves show nothing: the loss is random, not finite, or raises an error for a half.
    """
    if len(targets) < 2:
        return "mean"
    # Of each example its own outputs: with equal halves, a loss of all pairs of outputs and targets looks like a mean.
    # Smaller numbers of the same sign stay probabilities, or their logarithms.
    scales = torch.linspace(1, 0.5, len(targets), device=outputs.device).view(-1, *[1] * (outputs.ndim - 1))
    # In float32, as 16 bits round more than the comparison allows.
    outputs = single(outputs) * scales if outputs.is_floating_point() else outputs
    weights = weights_of(task, targets)
    weights = torch.ones(len(targets), device=targets.device) if weights is None else weights
    first, second = (float(part.sum()) for part in weights.tensor_split(2))
    try:
        whole, again = (float(task.loss(outputs, targets)) for _ in range(2))
        halves = zip(outputs.tensor_split(2), targets.tensor_split(2), strict=True)
        one, other = (float(task.loss(*half)) for half in halves)
    except Exception:  # of a user's own loss, which may need more examples
        return "mean"
    close = functools.partial(math.isclose, rel_tol=1e-4, abs_tol=1e-6)  # in float32
    if whole != again or not all(map(math.isfinite, (whole, one, other))) or not first or not second:
        return "mean"
    if close(whole, (first * one + second * other) / (first + second)):
        return "mean"
    least = 1e-3 * abs(whole)  # a half whose loss is 0 tells nothing
    return "sum" if close(whole, one + other) and min(abs(one), abs(other)) > least else "other"


class MeanLoss:
    """The mean loss over many batches, each with its weight, summed on the device."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self._loss: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0

    def add(self, loss: Tensor, targets: Tensor) -> None:
        """Adds the loss of one batch."""
        loss = single(loss)
        weights = weights_of(self._task, targets)
        if weights is None:
            self._loss += loss * len(targets)
            self._weight += len(targets)
            return
        weight = weights.sum()
        self._loss += torch.where(weight > 0, loss * weight.to(loss.dtype), 0)  # 0 / 0 where no label counts
        self._weight += weight

    def sums(self) -> tuple[float, float]:
        """Returns the sums of loss times weight, and of the weights. Waits for the device."""
        return float(self._loss), float(self._weight)

    def result(self) -> float:
        """Returns the mean, or NaN if nothing counts."""
        return mean(*self.sums())


def mean(total: float, weight: float) -> float:
    return total / weight if weight else math.nan
