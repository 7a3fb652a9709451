"""The number format of a training step, and the optimiser step from gradients in this format."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from nas.errors import ConfigError, NasError, described
from nas.runtime import distributed
from nas.runtime.fused_step import clip, fused_step
from nas.runtime.nonfinite import Watch, each_norm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STEPPED: WeakSet[Optimizer] = WeakSet()  # optimisers that have taken their first step


@dataclass(frozen=True)
class Precision:
    """The number format of a run.

    name: ``fp32``, ``bf16`` or ``fp16``. The last two run the operations that gain from 16 bits in 16 bits
    (torch.autocast). Weights, logits, batch norm statistics and losses stay float32. device: a torch.device's type.

    fp16 must scale its losses up, because small gradients become 0 in it (Micikevicius et al. 2018): see `scaler`. With
    fp16 and an optimiser that is not fused, the host waits for the device once per step.
    Raises ConfigError for any other name.
    """

    name: str = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.name not in DTYPES:
            raise ConfigError(
                f"runtime.precision must be one of {', '.join(DTYPES)}, got {self.name!r}",
                fix="set runtime.precision=bf16 for mixed precision",
            )

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass and its loss."""
        if self.name == "fp32" and not torch.is_autocast_enabled(self.device):
            return nullcontext()  # in a tenth of the time
        return torch.autocast(self.device, DTYPES[self.name], enabled=self.name != "fp32")

    def scaler(self) -> GradScaler:
        """Returns a new scaler of losses. The scaler changes losses in fp16 only."""
        return GradScaler(self.device, enabled=self.name == "fp16")


def autocast_without_cache(device: str) -> AbstractContextManager[Any]:
    """The context of a forward pass at the precision that is set, without the cache of cast weights.

    device: a torch.device's type. The cache lives until the outermost autocast context ends. It keeps the casts' part
    of the autograd graph alive, which belongs to the stream on which the casts were made.
    """
    return torch.autocast(
        device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device), cache_enabled=False
    )


@dataclass(frozen=True)
class Taken:
    """The result of an optimiser step.

    norm: the norm of the gradient before clipping; infinite if fp16 overflowed, and then no weight changed. skipped:
    whether the step was skipped because a number was not finite. Such a step changes and measures nothing.
    """

    norm: Tensor
    skipped: bool = False


def take_step(
    optimizer: Optimizer,
    scaler: GradScaler,
    *,
    max_norm: float = 0.0,
    watch: Watch | None = None,
    measured: Sequence[Tensor] = (),
) -> Taken:
    """Clips the gradients and takes an optimiser step.

    scaler: has scaled the losses; the gradients are unscaled first. max_norm: the largest gradient norm, 0 for no
    clipping. watch: decides what happens if a number is not finite; None for no check.

    Several processes call it together and step by the mean of their gradients. A gradient that some processes lack
    counts as zeros there. The watched loss and the floating-point tensors in `measured` are replaced by their means
    over the processes, so that all processes report the same numbers.
    Raises ConfigError if the optimiser cannot take its first step.
    """
    learning, gradients = with_gradients(optimizer)
    # Average before any check, so that all processes decide and step alike, to the last bit.
    counted = [one for one in measured if one.is_floating_point()]  # integer sums stay exact without a mean here
    distributed.average([*gradients, *([] if watch is None else [watch.loss]), *counted])
    if not gradients:
        nothing = torch.zeros(()) if watch is None else torch.zeros_like(watch.loss)
        return Taken(nothing, skipped=watch is not None and not watch.passes([], nothing.expand(0), nothing))
    scaler.unscale_(optimizer)
    norms = each_norm(gradients)
    norm = torch.linalg.vector_norm(norms)
    if watch is not None:
        judged, total = norms, norm
        if scaler.is_enabled():
            # The scaler skips steps that overflow and lowers its scale. Overflow is an error only at a scale below 1.
            low = scaler.scale(torch.ones_like(norm)) < 1
            judged, total = torch.where(low, norms, 0.0), torch.where(low, norm, 0.0)
        if not watch.passes(learning, judged, total):
            scaler.update()
            return Taken(norm, skipped=True)
    if max_norm:
        clip(optimizer, learning, gradients, max_norm, norm)
    if optimizer in STEPPED and not scaler.is_enabled() and fused_step(optimizer, learning, gradients):
        return Taken(norm)
    begin_momentum(optimizer)
    with first_step_told(optimizer), steps_in_place(optimizer, learning):
        scaler.step(optimizer)
    scaler.update()
    return Taken(norm)


def with_gradients(optimizer: Optimizer) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the parameters that have a gradient in some process, and their gradients."""
    if distributed.world() > 1:
        distributed.complete([p for group in optimizer.param_groups for p in group["params"]])
    learning, gradients = [], []
    for group in optimizer.param_groups:
        for p in group["params"]:
            if (gradient := p.grad) is not None:
                learning.append(p)
                gradients.append(gradient)
    return learning, gradients


@contextmanager
def first_step_told(optimizer: Optimizer) -> Iterator[None]:
    """Raises ConfigError, with the reason, if an optimiser fails in its first step.

    Such an optimiser does not fit this project's steps, e.g. because it needs a closure or another kind of gradients.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an optimiser of the user's own may raise any
        if optimizer in STEPPED or isinstance(error, NasError):
            raise
        raise ConfigError(
            f"the optimiser {type(optimizer).__name__} cannot take its first step ({described(error)})",
            fix="make the gradients dense, e.g. nn.Embedding(..., sparse=False)"
            if "sparse" in str(error)  # of SparseAdam, which wants such gradients, the message has no small letter
            else "choose an optimiser that needs dense gradients only, e.g. torch.optim.SGD or torch.optim.AdamW, or "
            "correct its arguments",
        ) from error
    STEPPED.add(optimizer)


@contextmanager
def steps_in_place(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Lets an optimiser with ``differentiable=True`` step.

    Such an optimiser writes into the parameters while torch records gradients, and torch refuses this for parameters
    that require a gradient.
    """
    if not any(group.get("differentiable") for group in optimizer.param_groups):
        yield
        return
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def check_first_step(optimizer: Optimizer) -> None:
    """Takes a trial step with gradients of zeros. Raises ConfigError if the optimiser cannot take the step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    take_step(optimizer, Precision().scaler())


def begin_momentum(optimizer: Optimizer) -> None:
    """Gives every weight that has its first gradient a momentum of 0.

    torch's fused SGD expects that all weights or no weights have a momentum, but a search draws operations for the
    first time in different steps. Without dampening (only then is SGD fused) the result is the same as in SGD, whose
    first momentum is the gradient.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if group.get("fused") and group["momentum"]:
            for p in group["params"]:
                if p.grad is not None and (state := optimizer.state[p]).get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(p)
