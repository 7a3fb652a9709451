"""What each candidate alone adds to the loss, by a running regression over drawn networks."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.errors import ConfigError


class MainEffects:
    """Ridge regression of the losses of drawn networks on which candidate each choice has drawn.

    Networks of one step share a batch, so only their differences are looked at: the regression takes losses and
    indicators less their means over the step. A step's observations fade by exp(-1 / memory) with every later step.

    memory: steps after which an observation counts 1/e. ridge: observations that hold each effect at 0; it should be
    about the variance of what single candidates do not explain, over the variance of the effects.
    The effects take one solution of a system as large as there are candidates in all, in float64: 0.1 ms for
    NAS-Bench-201's 30, and 2 ms for the 224 of the DARTS space.
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
        """Take in one step. drawn: (networks, choices) int64. losses: (networks,). candidates: of the widest choice."""
        wide = torch.float32 if losses.device.type == "mps" else torch.float64  # which that device lacks
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
        """(choices, candidates) of the form, type and device of `like`; 0 before the first step."""
        if self._gram is None or self._moment is None:
            return torch.zeros_like(like)
        gram, moment = self._gram.to(like.device), self._moment.to(like.device)
        ridge = self.ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        solution, _ = torch.linalg.solve_ex(gram + ridge, moment)  # without a wait for a GPU: it is never singular
        return solution.view_as(like).to(like)

    def state_dict(self) -> dict[str, Any]:
        return {"gram": self._gram, "moment": self._moment}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._gram, self._moment = state["gram"], state["moment"]
