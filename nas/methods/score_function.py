"""The score function estimator: the logits learn from the losses of drawn networks, without a backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nas.errors import ConfigError
from nas.methods.main_effects import MainEffects
from nas.methods.sampler import Gates, gumbel_softmax, straight_through
from nas.supernet.arch_params import ArchParams


class ScoreFunction:
    """Draws one candidate of every choice from p = softmax(logits).

    An architecture step draws several networks and runs them forward on one batch. The mean loss of the other networks
    is the baseline of each network (REINFORCE with a leave-one-out baseline: Williams 1992, Kool et al. 2019).

    The gradient of E[L] is the mean over the n networks of (L_i - mean_{j != i} L_j) d log p(network i). This estimate
    is unbiased for every loss, ignores the temperature, and takes `samples` forward passes. For choices inside
    candidates that a network has not drawn, the estimate adds noise but no bias.

    samples: networks per step, 2 or more. control: subtract from each loss the loss that a running regression predicts
    from single candidates, and add the exact gradient of the prediction. The estimate stays unbiased, without the noise
    that the regression explains. memory, ridge: of the regression, see `MainEffects`.
    """

    relaxed = False

    def __init__(self, *, samples: int = 2, control: bool = False, memory: float = 400, ridge: float = 10.0) -> None:
        if samples < 2:
            raise ConfigError(
                f"sampler.samples must be at least 2, got {samples}, as each network is a baseline for the others",
                fix="set sampler.samples=2",
            )
        self.samples = samples
        effects = MainEffects(memory=memory, ridge=ridge)  # built without control too, to check the settings
        self.effects = effects if control else None

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        soft, drawn = gumbel_softmax(logits.detach(), 1.0, generator)
        return Gates(straight_through(drawn, soft), drawn)  # NaN where the logits are NaN; `refuse_nan` raises then

    def surrogate(self, arch: ArchParams, drawn: Sequence[Gates], losses: Tensor) -> Tensor:
        """Returns a scalar whose gradient is the logits' gradient of the step. losses: (networks,)."""
        logits = arch.masked()
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        indices = indices_of(drawn)
        # The advantages sum to 0, so log p = logit - logsumexp can do without its last term, and a choice of which all
        # networks have drawn one candidate gets no gradient. What the advantages' rounding errors leave of both would
        # be a whole step for Adam, before it has seen larger gradients.
        alike = (indices == indices[0]).all(dim=0)
        scores = torch.stack([wide.gather(-1, row[:, None])[:, 0].masked_fill(alike, 0).sum() for row in indices])
        residuals = losses.detach().to(scores)
        known = torch.zeros_like(scores[0])
        if self.effects is not None:
            effects = self.effects.effects(wide)
            residuals = residuals - torch.stack([effects.gather(-1, row[:, None]).sum() for row in indices])
            known = (wide.softmax(dim=-1) * effects).sum()
        # L_i - mean_{j != i} L_j = n / (n - 1) (L_i - mean L); the mean over the n networks leaves 1 / (n - 1).
        advantages = (residuals - residuals.mean()) / (len(drawn) - 1)
        return (advantages * scores).sum() + known

    def learn(self, arch: ArchParams, drawn: Sequence[Gates], losses: Tensor) -> None:
        """Adds the networks of a finished step to the regression, for later steps."""
        if self.effects is not None:
            self.effects.add(indices_of(drawn), losses.detach(), candidates=arch.logits.shape[-1])

    def state_dict(self) -> dict[str, Any]:
        return {} if self.effects is None else self.effects.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.effects is not None:
            self.effects.load_state_dict(state)


def indices_of(drawn: Sequence[Gates]) -> Tensor:
    """(networks, choices): the drawn candidates."""
    return torch.stack([gates.drawn for gates in drawn if gates.drawn is not None])
