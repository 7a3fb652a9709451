"""The score function: the logits learn from the losses of drawn networks, without a backward pass through them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nas.errors import ConfigError
from nas.methods.main_effects import MainEffects
from nas.methods.sampler import Gates, gumbel_softmax, straight_through
from nas.supernet.arch_params import ArchParams


class ScoreFunction:
    """Draws one candidate of every choice from p = softmax(logits); an architecture step draws several networks, which
    it runs forward on one batch, and each is the others' baseline (REINFORCE with a leave-one-out baseline: Williams
    1992, Kool et al. 2019).

    The gradient of E[L] is the mean over the n networks of (L_i - mean_{j != i} L_j) d log p(network i). It is unbiased
    whatever the loss does, takes no temperature, and as many forward passes as `samples`. Of choices that a network
    does not reach, inside of candidates that it has not drawn, it adds noise and no bias.

    samples: networks of a step, 2 or more. control: subtract from each loss what a running regression expects of single
    candidates, and add the exact gradient of that: as unbiased, and what the regression explains is noise no longer.
    memory, ridge: of the regression, see `MainEffects`.
    """

    relaxed = False

    def __init__(self, *, samples: int = 2, control: bool = False, memory: float = 400, ridge: float = 10.0) -> None:
        if samples < 2:
            raise ConfigError(
                f"sampler.samples must be at least 2, got {samples}: each network is the others' baseline",
                fix="set sampler.samples=2",
            )
        self.samples = samples
        effects = MainEffects(memory=memory, ridge=ridge)  # made in any case, as it checks its settings
        self.effects = effects if control else None

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        soft, drawn = gumbel_softmax(logits.detach(), 1.0, generator)
        return Gates(straight_through(drawn, soft), drawn)  # NaN where the logits are NaN; `refuse_nan` raises then

    def surrogate(self, arch: ArchParams, drawn: Sequence[Gates], losses: Tensor) -> Tensor:
        """A scalar with the gradient of the step in the logits. losses: (networks,), those of the drawn networks."""
        logits = arch.masked()
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_probs = wide.log_softmax(dim=-1)
        indices = indices_of(drawn)
        scores = torch.stack([log_probs.gather(-1, row[:, None]).sum() for row in indices])
        residuals = losses.detach().to(scores)
        known = torch.zeros_like(scores[0])
        if self.effects is not None:
            effects = self.effects.effects(wide)
            residuals = residuals - torch.stack([effects.gather(-1, row[:, None]).sum() for row in indices])
            known = (log_probs.exp() * effects).sum()
        # L_i - mean_{j != i} L_j = n / (n - 1) (L_i - mean L); the mean over the n networks leaves 1 / (n - 1).
        advantages = (residuals - residuals.mean()) / (len(drawn) - 1)
        return (advantages * scores).sum() + known

    def learn(self, arch: ArchParams, drawn: Sequence[Gates], losses: Tensor) -> None:
        """After the step: the regression takes it in, for the steps to come."""
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
