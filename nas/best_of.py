"""The best of several sampled architectures, as single-path searches derive (Guo et al. 2020, Li & Talwalkar 2019)."""

import copy
from collections.abc import Iterator, Sequence

import torch

from nas.arch import ArchParams
from nas.deriver import from_logits
from nas.errors import ConfigError
from nas.judge import Judge
from nas.sampler import gumbel_noise


class BestOf:
    """Draws architectures from the distribution of the logits and keeps the best on common validation batches.

    An architecture is drawn by perturbing the logits with Gumbel noise and deriving from those: without a `count` an
    exact draw from softmax(logits) among the candidates that are not excluded (Gumbel-max). The one that the logits
    derive unperturbed is always among the contestants, and comes first: it wins a tie.
    Each is scored inside the supernet with its batch norms recalibrated; without that, statistics that belong to other
    paths decide (Guo et al. 2020).

    samples: architectures drawn beside that one; equal ones are scored once. batches: of validation, and as many of
    calibration. count: edges that every group keeps, None for all of them. exclude: candidates never derived.
    """

    def __init__(
        self, *, samples: int = 32, batches: int = 4, count: int | None = None, exclude: Sequence[str] = ()
    ) -> None:
        for name, value in (("samples", samples), ("batches", batches)):
            if value < 1:
                raise ConfigError(f"deriver.{name} must be at least 1, got {value}", fix=f"set deriver.{name}=4")
        self.samples = samples
        self.batches = batches
        self.rule = from_logits(count=count, exclude=exclude)

    def __call__(self, arch: ArchParams) -> dict[str, str | None]:
        return self.rule(arch)

    def judged(self, arch: ArchParams, judge: Judge) -> dict[str, str | None]:
        contestants = [self.rule(arch)]
        for perturbed in self._perturbations(arch, judge.generator()):
            drawn = self.rule(perturbed)
            if drawn not in contestants:
                contestants.append(drawn)
        # max() returns the first of equals.
        return max(contestants, key=lambda chosen: judge.merit(judge.decided(chosen, recalibrated=True)))

    @torch.no_grad()
    def _perturbations(self, arch: ArchParams, generator: torch.Generator) -> Iterator[ArchParams]:
        perturbed = copy.deepcopy(arch)
        for _ in range(self.samples):
            perturbed.logits.copy_(arch.logits + gumbel_noise(arch.logits, generator))
            yield perturbed
