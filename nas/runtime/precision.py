"""In which numbers a training step computes, and how it gets from gradients to the optimiser's step in them."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from nas.errors import ConfigError, NasError, described
from nas.runtime import distributed
from nas.runtime.nonfinite import Watch, each_norm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STEPPED: WeakSet[Optimizer] = WeakSet()  # optimisers that have taken a step


@dataclass(frozen=True)
class Precision:
    """name: ``fp32``; ``bf16`` or ``fp16`` run what gains from it in 16 bits (torch.autocast). Weights, logits, batch
    norm statistics and losses stay float32. device: a torch.device's type.

    fp16 needs its losses scaled up, as small gradients vanish in it (Micikevicius et al. 2018): see `scaler`. Unless
    the optimiser is fused the host then waits for the device once a step.
    Raises ConfigError for a name that is none of these.
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
        return torch.autocast(self.device, DTYPES[self.name], enabled=self.name != "fp32")

    def scaler(self) -> GradScaler:
        """A fresh scaler of losses; it changes nothing but in fp16."""
        return GradScaler(self.device, enabled=self.name == "fp16")


@dataclass(frozen=True)
class Taken:
    """A step of an optimiser. norm: of its gradient before clipping, infinite where fp16 overflowed and nothing moved.
    skipped: as it was not finite, so that it moved nothing and measured nothing."""

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
    """Step by the gradients of losses that `scaler` has scaled, and clip them before: max_norm, 0 for not at all.
    watch: what knows what to do if they are not finite, None for nothing.

    Several processes step by the mean of their gradients, all of them together. A parameter that has a gradient in some
    of them counts as zeros in the others. The loss that is watched, and what else was measured, become means in place
    with them, so that all count the same.
    Raises ConfigError for an optimiser that cannot take its first step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    distributed.complete(parameters)
    learning = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in learning]
    # Before anything looks at them, so that all decide and move alike, to the last bit.
    counted = [one for one in measured if one.is_floating_point()]  # sums of integers stay exact without it
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
            # It skips what overflows and lowers its scale: only where that has not helped something is wrong.
            low = scaler.scale(torch.ones_like(norm)) < 1
            judged, total = torch.where(low, norms, 0.0), torch.where(low, norm, 0.0)
        if not watch.passes(learning, judged, total):
            scaler.update()
            return Taken(norm, skipped=True)
    if max_norm:
        nn.utils.clip_grads_with_norm_(learning, max_norm, total_norm=norm)
    begin_momentum(optimizer)
    with first_step_told(optimizer), steps_in_place(optimizer, learning):
        scaler.step(optimizer)
    scaler.update()
    return Taken(norm)


@contextmanager
def first_step_told(optimizer: Optimizer) -> Iterator[None]:
    """Raises ConfigError, with the reason, for what an optimiser raises in its first step: it is not made for steps
    like ours, as one that needs a closure, or gradients of another kind."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if optimizer in STEPPED or isinstance(error, NasError):
            raise
        raise ConfigError(
            f"the optimiser {type(optimizer).__name__} cannot take its first step ({described(error)})",
            fix="choose one that steps by dense gradients alone, e.g. torch.optim.SGD or torch.optim.AdamW, or "
            "correct its arguments",
        ) from error
    STEPPED.add(optimizer)


@contextmanager
def steps_in_place(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside, an optimiser with ``differentiable=True`` can step: it has gradients computed while it writes into the
    parameters, which torch refuses for those that need one."""
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
    """Step an optimiser that is only tried, by gradients of zeros. Raises ConfigError if it cannot."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    take_step(optimizer, Precision().scaler())


def begin_momentum(optimizer: Optimizer) -> None:
    """Give every weight that has its first gradient a momentum of 0.

    torch's fused SGD expects either all or none of the weights to have one, but operations are drawn for the first time
    one after the other. Without dampening, which is when we fuse, it is the same as the gradient that SGD begins with.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group.get("fused") and group["momentum"]:
            for p in group["params"]:
                if p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
