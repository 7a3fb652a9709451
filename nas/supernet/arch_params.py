"""The architecture parameters. Each choice key has one logit vector, which is kept outside of the supernet."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nas.supernet.choice import Choice, choices


class ArchParams(nn.Module):
    """The logits (alpha in DARTS eq. 2) of every choice key, as the rows of one matrix.

    With one matrix, sampling, entropy and the optimiser take a fixed number of calls for any number of choices, and
    all gates come to the host in one transfer. Rows of choices with fewer candidates than the widest choice are
    padded. `masked` writes -inf into the padding, so that the padding has probability 0 and receives no gradient.

    found: choices by key, as `nas.supernet.choice.choices` returns them.
    init_std: the logits start as init_std * N(0, 1); 1e-3 in the published searches.

    A weighed choice has one more logit, for its share in its group (beta in Xu et al. 2020).
    """

    mask: Tensor
    padding: Tensor
    rivals: Tensor

    def __init__(
        self, found: Mapping[str, Sequence[Choice]], *, init_std: float = 1e-3, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.candidates: dict[str, tuple[str, ...]] = {key: sharing[0].names for key, sharing in found.items()}
        self.groups: dict[str, str | None] = {key: sharing[0].group for key, sharing in found.items()}
        sizes = torch.tensor([len(names) for names in self.candidates.values()])
        mask = torch.arange(int(sizes.max())) < sizes[:, None]  # (choices, widest): True at real candidates
        self.logits = nn.Parameter(init_std * torch.randn(mask.shape, generator=generator) * mask)
        self.register_buffer("mask", mask)
        self.register_buffer("padding", ~mask, persistent=False)
        # Shares sum to 1 over the weighed choices of a group. Every other choice has a sum of its own.
        sums = [sharing[0].group if sharing[0].weighed else row for row, sharing in enumerate(found.values())]
        self.register_buffer("rivals", torch.tensor([[one == other for other in sums] for one in sums]))
        self.share_logits: nn.Parameter | None = None
        if any(sharing[0].weighed for sharing in found.values()):
            self.share_logits = nn.Parameter(init_std * torch.randn(len(sums), generator=generator))
            self.share_logits.competing = self.rivals  # type: ignore[attr-defined]
        # Optimisers of probabilities read `competing`: see `nas.methods.exponentiated_gradient`.
        self.logits.competing = mask  # type: ignore[attr-defined]

    @classmethod
    def from_model(
        cls, model: nn.Module, *, init_std: float = 1e-3, generator: torch.Generator | None = None
    ) -> "ArchParams":
        return cls(choices(model), init_std=init_std, generator=generator)

    @property
    def keys(self) -> tuple[str, ...]:
        """The choice keys, in the order of the rows."""
        return tuple(self.candidates)

    def masked(self) -> Tensor:
        """(choices, widest): the logits, -inf at the padding."""
        return self.logits.masked_fill(self.padding, -torch.inf)

    def probs(self) -> Tensor:
        """(choices, widest): the softmax of each row, 0 at the padding."""
        return self.masked().softmax(dim=-1)

    def shares(self) -> Tensor | None:
        """(choices,): the share of each choice in the sum of its group. Returns None if no choice is weighed.

        The shares of weighed choices are a softmax over their group. The share of any other choice is 1.
        """
        if self.share_logits is None:
            return None
        logits = self.share_logits.expand(self.rivals.shape).masked_fill(~self.rivals, -torch.inf)
        return logits.softmax(dim=-1).diagonal()

    def entropy(self) -> Tensor:
        """(choices,): the entropy of each row's distribution in nats; log K for K equally probable candidates."""
        log_probs = self.masked().log_softmax(dim=-1)
        # The padding gets 0 in place of -inf: 0 * -inf would give NaN, in the value or in the gradient.
        return -(log_probs.exp() * log_probs.masked_fill(~self.mask, 0.0)).sum(dim=-1)

    def naming(self, parameter: Tensor) -> str:
        """Names the first choice whose logits, or else whose gradient, are not finite. Used in error messages.

        parameter: the logits or the share logits.
        """
        gradient = parameter.grad
        for values in (parameter.detach(), *([] if gradient is None else [gradient])):
            for key, row in zip(self.keys, values, strict=True):
                if not row.isfinite().all():
                    return f"the {'logits' if parameter is self.logits else 'share'} of {key}"
        return "the logits"

    def named_shares(self) -> dict[str, float]:
        """key -> share of every choice, on the host; 1 for choices that are not weighed."""
        shares = self.shares()
        return dict.fromkeys(self.keys, 1.0) if shares is None else dict(zip(self.keys, shares.tolist(), strict=True))

    def named_probs(self) -> dict[str, dict[str, float]]:
        """key -> candidate -> probability, on the host in one transfer."""
        rows = self.probs().tolist()
        return {
            key: dict(zip(names, row, strict=False))
            for (key, names), row in zip(self.candidates.items(), rows, strict=True)
        }
