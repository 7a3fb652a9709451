"""Estimates the effect of each single candidate on the loss, by a running regression over drawn networks."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.errors import ConfigError


class MainEffects:
    """Ridge regression from the drawn candidates of a network to its loss.

    The networks of one step share a batch, so only their differences matter: the regression uses losses and indicators
    minus their means over the step. Every later step multiplies the weight of an observation by exp(-1 / memory).

    memory: the number of steps after which an observation has the weight 1/e. ridge: the strength of the prior that
    each effect is 0, in observations; a good value is the variance that single candidates do not explain, divided by
    the variance of the effects.
    The effects are the solution of a linear system in float64 with one unknown per candidate: 0.1 ms for the 30
    candidates of NAS-Bench-201, and 2 ms for the 224 of the DARTS space.
    """

    def __init__(self, *, memory: float, ridge: float = 10.0) -> None:
        if not memory >= 1:
            raise ConfigError(f"sampler.memory must be at least 1, got {memory:g}", fix="set sampler.memory=400")
        if not ridge > 0:
            raise ConfigError(f"sampler.ridge must be > 0, got {ridge:g}", fix="set sampler.ridge=10")
        self.memory = memory
        self.ridge = ridge
        self._gram: Tensor | None = None
        self._moment: Tensor | None = None

    @torch.no_grad()
    def add(self, drawn: Tensor, losses: Tensor, *, candidates: int) -> None:
        """Adds one step. drawn: (networks, choices) int64. losses: (networks,). candidates: of the widest choice."""
        wide = torch.float32 if losses.device.type == "mps" else torch.float64  # MPS has no float64
        indicators = F.one_hot(drawn, candidates).flatten(1).to(wide)
        indicators -= indicators.mean(dim=0)
        differences = losses.to(wide) - losses.to(wide).mean()
        gram, moment = indicators.T @ indicators, indicators.T @ differences
        if self._gram is not None and self._moment is not None:
            kept = math.exp(-1 / self.memory)
            gram, moment = gram + kept * self._gram.to(gram), moment + kept * self._moment.to(moment)
        self._gram, self._moment = gram, moment

    @torch.no_grad()
    def effects(self, like: Tensor) -> Tensor:
        """(choices, candidates): the effects, with the shape, dtype and device of `like`; 0 before the first step."""
        if self._gram is None or self._moment is None:
            return torch.zeros_like(like)
        gram, moment = self._gram.to(like.device), self._moment.to(like.device)
        ridge = self.ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        # solve_ex does not wait for a GPU to check for singularity. The ridge makes the matrix regular.
        solution, _ = torch.linalg.solve_ex(gram + ridge, moment)
        return solution.view_as(like).to(like)

    def state_dict(self) -> dict[str, Any]:
        return {"gram": self._gram, "moment": self._moment}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._gram, self._moment = state["gram"], state["moment"]
