"""The best of several sampled architectures, as single-path searches derive (Guo et al. 2020, Li & Talwalkar 2019)."""

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

    An architecture is drawn by perturbing the logits with Gumbel noise and deriving from those: without a `count` an
    exact draw from softmax(logits) among the candidates that are not excluded (Gumbel-max). The one that the logits
    derive unperturbed is always among the contestants, and comes first: it wins a tie.
    Each is scored inside the supernet with its batch norms recalibrated; without that, statistics that belong to other
    paths decide (Guo et al. 2020).

    samples: architectures drawn beside that one; equal ones are scored once. batches: of validation, and as many of
    calibration. count: edges that every group keeps, None for all of them. exclude: candidates never derived.
    rounds: of successive halving (Jamieson & Talwalkar 2016): the better half of each round goes on to the next one,
    which looks at twice the batches, the last one at `batches`. r rounds of n architectures cost as much as one round
    of n r / 2^(r - 1).
    by: ``metric``, the task's, or ``loss``, which tells apart what classifies equally many examples right.
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
        for ahead in reversed(range(self.rounds)):  # rounds that come after this one
            batches = self.batches >> ahead
            merits = [self._merit(judge, chosen, batches) for chosen in contestants]
            # sorted() is stable: of equals the first stays.
            ranked = sorted(range(len(contestants)), key=merits.__getitem__, reverse=True)
            # In the order that they were drawn in, so that what the logits prefer comes first in the next round too.
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
