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

    The optimiser receives the gradient of the logits, theta (dL/dtheta - <theta, dL/dtheta>). Divided by theta, the
    gradient is dL/dtheta up to a constant for each choice, and the normalisation removes the constant. So the step is
    exact for every sampler whose gates are a function of theta. For other samplers the step is mirror descent on their
    estimate. After the step the logits are log(theta).

    params: (choices, candidates) logits, or (choices,) logits of shares. `ArchParams` sets the attribute ``competing``,
    which says what competes: (choices, candidates), True at real candidates, or (choices, choices), True between the
    choices of a group. Without the attribute each row competes, or the whole vector.
    floor: the lowest probability before the normalisation; 1e-5 as in the authors' code. Every candidate can recover.
    Raises ConfigError for parameters that do not have one or two dimensions, as these are no logits.
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
                    "ExponentiatedGradient updates logits of shape (choices, candidates), got a parameter of shape "
                    f"{tuple(logits.shape)}",
                    fix="use it for optim@arch_optim only",
                )
        # Stored in the group, because copies and checkpoints of an optimiser keep the group.
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
    """Takes one step of `ExponentiatedGradient` on one parameter, in float64 if the device supports it."""
    assert logits.grad is not None
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    if competing is not None:
        competing = competing.to(logits.device)
    if logits.dim() == 2 or competing is None:
        real = torch.ones_like(logits, dtype=torch.bool) if competing is None else competing
        rows, gradient = logits.to(wide), logits.grad.to(wide)
    else:  # a vector: row i holds the rivals of entry i, and entry i is on the diagonal
        real = competing
        rows, gradient = logits.to(wide).expand(real.shape), logits.grad.to(wide).expand(real.shape)
    probs = rows.masked_fill(~real, -torch.inf).softmax(dim=-1)
    # The gradient of a logit is a multiple of its probability, so it is 0 at probability 0.
    slope = torch.where(probs > 0, gradient / probs, torch.zeros_like(probs))
    moved = (rows - lr * slope).masked_fill(~real, -torch.inf).softmax(dim=-1)
    held = moved.clamp_min(floor).masked_fill(~real, 0.0)
    found = (held / held.sum(dim=-1, keepdim=True)).log()
    if found.dim() > logits.dim():
        found, real = found.diagonal(), real.diagonal()
    logits.copy_(torch.where(real, found.to(logits), logits))
