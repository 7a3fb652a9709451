"""Samplers: (logits, temperature, generator) -> gates.

A sampler is any callable of that form. The logits come as a (choices, candidates) matrix with -inf at the padding;
every row is a categorical distribution of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nas.choice import Gate


@dataclass(frozen=True)
class Gates:
    """The gates of all choices for one step.

    weights: (choices, candidates) factors of the candidates' outputs, each row summing to 1.
    drawn: (choices,) int64, the only candidate of each choice that runs; None when all of them run.
    """

    weights: Tensor
    drawn: Tensor | None = None

    def by_key(self, keys: Sequence[str], *, differentiable: bool) -> dict[str, Gate]:
        """Gates for `nas.choice.gates`, row i for keys[i].

        differentiable: False drops the gradient, as the weight step has no use for it.
        """
        # One .tolist() for all choices: an .item() for each would synchronise a GPU as often as there are edges.
        drawn: list[int | None] = [None] * len(keys) if self.drawn is None else self.drawn.tolist()
        if not differentiable and self.drawn is not None:
            return {key: Gate(None, index) for key, index in zip(keys, drawn, strict=True)}
        weights = self.weights if differentiable else self.weights.detach()
        # Unbound once a row: indexing the matrix in every choice would add a full-size gradient for each of them.
        rows = [row.unbind() for row in weights.unbind()]
        return {key: Gate(row, index) for key, row, index in zip(keys, rows, drawn, strict=True)}


class Sampler(Protocol):
    """Draws the gates of one step. All randomness comes from `generator`."""

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates: ...


def gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of the shape of `like`: -log E with E ~ Exp(1), which unlike -log(-log U) never meets
    log 0. Drawn on the generator's device in float32, so that a search draws the same on a CPU and on a GPU."""
    exponential = torch.empty(like.shape, device=generator.device).exponential_(generator=generator)
    return -exponential.log().to(like)


class GDAS:
    """One drawn operation an edge, differentiable in the logits (Dong & Yang 2019).

    With y = softmax((log p + g) / tau), g Gumbel noise, and k = argmax y, only operation k runs, and its output is
    multiplied by h_k = 1 + y_k - stopgrad(y_k): 1 forward, the gradient of y_k backward. That is the estimator the
    formula in the paper defines; the gates of the operations that were not drawn take no part in the output, and
    their logits learn through the softmax alone.
    """

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        perturbed = logits.log_softmax(dim=-1) + gumbel_noise(logits, generator)
        soft = (perturbed / temperature).softmax(dim=-1)
        # argmax of the perturbed logits, not of `soft`: at a high temperature softmax rounds neighbours to ties.
        drawn = perturbed.argmax(dim=-1)
        hard = torch.zeros_like(soft).scatter_(-1, drawn[:, None], 1.0)
        return Gates(hard + (soft - soft.detach()), drawn)
