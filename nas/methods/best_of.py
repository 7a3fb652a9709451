"""Derives the best of several sampled architectures, as single-path searches do (Guo et al. 2020, Li & Talwalkar
2019)."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch

from nas.errors import ConfigError
from nas.methods.deriver import from_logits
from nas.methods.sampler import gumbel_noise
from nas.methods.supernet_score import Judge, worst_if_nan
from nas.supernet.arch_params import ArchParams

CRITERIA = ("metric", "loss")


class BestOf:
    """Draws architectures from the distribution of the logits and keeps the best on common validation batches.

    To draw an architecture, Gumbel noise is added to the logits and an architecture is derived from the sum. Without a
    `count` this is an exact draw from softmax(logits) among the candidates that are not excluded (Gumbel-max). The
    architecture that the logits derive without noise always takes part, and comes first: it wins a tie.
    Each architecture is scored inside the supernet with recalibrated batch norms. Otherwise statistics that belong to
    other paths would decide (Guo et al. 2020).

    samples: the number of drawn architectures, beside the one without noise; equal architectures are scored once.
    batches: the number of validation batches, and of calibration batches. count: edges that every group keeps, None for
    all edges. exclude: candidates that are never derived.
    rounds: rounds of successive halving (Jamieson & Talwalkar 2016). The better half of each round goes on to the next
    round, which has twice the batches; the last round has `batches`. r rounds of n architectures cost as much as one
    round of n r / 2^(r - 1).
    by: ``metric``, the task's metric, or ``loss``, which separates architectures with equal accuracy.
    """

    def __init__(
        self,
        *,
        samples: int = 32,
        batches: int = 4,
        count: int | None = None,
        exclude: Sequence[str] = (),
        rounds: int = 1,
        by: str = "metric",
    ) -> None:
        for name, value, least in (("samples", samples, 4), ("batches", batches, 4), ("rounds", rounds, 1)):
            if value < 1:
                raise ConfigError(f"deriver.{name} must be at least 1, got {value}", fix=f"set deriver.{name}={least}")
        if batches < 2 ** (rounds - 1):
            raise ConfigError(
                f"deriver.batches must be at least 2^(rounds - 1) = {2 ** (rounds - 1)}, got {batches}",
                fix=f"set deriver.batches={2 ** (rounds - 1)}, or fewer deriver.rounds",
            )
        if by not in CRITERIA:
            raise ConfigError(
                f"deriver.by must be one of {', '.join(CRITERIA)}, got {by!r}", fix=f"set deriver.by={CRITERIA[0]}"
            )
        self.samples = samples
        self.batches = batches
        self.rounds = rounds
        self.by = by
        self.count = count
        self.exclude = tuple(exclude)
        self.rule = from_logits(count=count, exclude=exclude)

    def __call__(self, arch: ArchParams) -> dict[str, str | None]:
        return self.rule(arch)

    def judged(self, arch: ArchParams, judge: Judge) -> dict[str, str | None]:
        contestants = [self.rule(arch)]
        for perturbed in self._perturbations(arch, judge.generator()):
            drawn = self.rule(perturbed)
            if drawn not in contestants:
                contestants.append(drawn)
        for ahead in reversed(range(self.rounds)):  # the number of later rounds
            batches = self.batches >> ahead
            merits = [self._merit(judge, chosen, batches) for chosen in contestants]
            # sorted() is stable: of equal contestants the first stays first.
            ranked = sorted(range(len(contestants)), key=merits.__getitem__, reverse=True)
            # Keep the order of drawing, so that the choice of the logits comes first in the next round too.
            contestants = [contestants[i] for i in sorted(ranked[: 1 if ahead == 0 else -(-len(contestants) // 2)])]
        (best,) = contestants
        return best

    def _merit(self, judge: Judge, chosen: Mapping[str, str | None], batches: int) -> tuple[float, ...]:
        score = judge.decided(chosen, recalibrated=True, batches=batches)
        return judge.merit(score) if self.by == "metric" else (worst_if_nan(-score.loss),)

    @torch.no_grad()
    def _perturbations(self, arch: ArchParams, generator: torch.Generator) -> Iterator[ArchParams]:
        perturbed = copy.deepcopy(arch)
        for _ in range(self.samples):
            perturbed.logits.copy_(arch.logits + gumbel_noise(arch.logits, generator))
            yield perturbed
