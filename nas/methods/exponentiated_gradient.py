"""Exponentiated gradient descent on the probabilities of the candidates, as an optimiser of the logits.

Source: GAEA, Li et al. 2021, "Geometry-Aware Gradient Algorithms for Neural Architecture Search".
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nas.errors import ConfigError


class ExponentiatedGradient(Optimizer):
    """theta <- theta * exp(-lr dL/dtheta), normalised, for the probabilities theta = softmax(logits) of every choice.

    The gradient that arrives is that of the logits, theta (dL/dtheta - <theta, dL/dtheta>). Divided by theta it is
    dL/dtheta up to a constant of each choice, which normalising takes away. So the step is exact for every sampler
    whose gates are a function of theta, and for the others it is mirror descent on their estimate. Afterwards the
    logits are log(theta).

    params: (choices, candidates) logits, or (choices,) logits of shares. What competes with what is read from the
    attribute ``competing`` that `ArchParams` gives them: (choices, candidates) True at real candidates, or
    (choices, choices) True between the choices of a group. Without it a row, or the whole vector, competes.
    floor: no probability falls below it before the others are normalised; 1e-5 as in the authors' code. None falls for
    good then.
    Raises ConfigError for parameters of more than two dimensions, which are no logits.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, floor: float = 1e-5) -> None:
        if not lr > 0:
            raise ConfigError(f"lr must be > 0, got {lr}", fix="set arch_optim.lr=0.1")
        if not 0 < floor < 0.1:
            raise ConfigError(f"floor must be in (0, 0.1), got {floor}", fix="set arch_optim.floor=1e-5")
        super().__init__(params, {"lr": lr, "floor": floor})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for logits in group["params"]:
            if logits.dim() not in (1, 2):
                raise ConfigError(
                    "exponentiated gradients move logits of (choices, candidates), got a parameter of "
                    f"{tuple(logits.shape)}",
                    fix="use it as optim@arch_optim alone",
                )
        # In the group, which copies and checkpoints of an optimiser keep.
        group["competing"] = [getattr(logits, "competing", None) for logits in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for logits, competing in zip(group["params"], group["competing"], strict=True):
                if logits.grad is not None:
                    move(logits, competing, lr=group["lr"], floor=group["floor"])
        return loss


def move(logits: Tensor, competing: Tensor | None, *, lr: float, floor: float) -> None:
    """One step of `ExponentiatedGradient` on one parameter, in float64 where the device has it."""
    assert logits.grad is not None
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    if competing is not None:
        competing = competing.to(logits.device)
    if logits.dim() == 2 or competing is None:
        real = torch.ones_like(logits, dtype=torch.bool) if competing is None else competing
        rows, gradient = logits.to(wide), logits.grad.to(wide)
    else:  # of a vector every entry is seen among its rivals; what it is itself stands on the diagonal
        real = competing
        rows, gradient = logits.to(wide).expand(real.shape), logits.grad.to(wide).expand(real.shape)
    probs = rows.masked_fill(~real, -torch.inf).softmax(dim=-1)
    # A gradient of logits is a multiple of the probability, so that one of 0 has none.
    slope = torch.where(probs > 0, gradient / probs, torch.zeros_like(probs))
    moved = (rows - lr * slope).masked_fill(~real, -torch.inf).softmax(dim=-1)
    held = moved.clamp_min(floor).masked_fill(~real, 0.0)
    found = (held / held.sum(dim=-1, keepdim=True)).log()
    if found.dim() > logits.dim():
        found, real = found.diagonal(), real.diagonal()
    logits.copy_(torch.where(real, found.to(logits), logits))
