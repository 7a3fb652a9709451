"""The discretisation gap: the loss in score from the network that a search trains to the network that it derives."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch

from nas.methods.sampler import Sampler, draw
from nas.methods.supernet_score import Judge
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Gate
from nas.training.put_back import all_put_back

FORMS = ("relaxed", "derived", "recalibrated")


@dataclass(frozen=True)
class Gap:
    """The task's metric of one supernet in three forms, on the same `examples` of the architecture's split.

    relaxed: under the gates of the search; batch norms use the statistics of each batch, as in the steps of the search.
    A sampler that draws makes a new draw for every batch, so the metric is a mean over as many draws as batches.
    derived: with the derived operations only; batch norms use the running statistics from the search.
    recalibrated: like `derived`, with statistics estimated anew for these operations, on as many batches of the
    weights' split.

    relaxed - recalibrated is the cost of discretisation. recalibrated - derived is the effect of stale statistics.
    """

    relaxed: float
    derived: float
    recalibrated: float
    examples: int

    @classmethod
    def measure(
        cls,
        judge: Judge,
        *,
        arch: ArchParams,
        sampler: Sampler,
        temperature: float,
        chosen: Mapping[str, str | None],
    ) -> "Gap":
        with all_put_back([sampler], device=arch.logits.device):  # a sampler may count its draws, or hold a generator
            relaxed = judge.relaxed(draws(judge.generator(), arch=arch, sampler=sampler, temperature=temperature))
        return cls(
            relaxed.metric,
            judge.decided(chosen, recalibrated=False).metric,
            judge.decided(chosen, recalibrated=True).metric,
            judge.examples,
        )

    def metrics(self) -> dict[str, float]:
        """The three values by the names under which they are logged."""
        return {f"gap/{name}": getattr(self, name) for name in FORMS}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float], *, examples: int) -> "Gap":
        """Rebuilds a gap from logged metrics, which may contain other metrics too."""
        return cls(**{name: metrics[f"gap/{name}"] for name in FORMS}, examples=examples)

    def to_dict(self) -> dict[str, float | None]:
        """The values for ``result.json``. NaN and infinity become None, because JSON has neither."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def draws(
    generator: torch.Generator, *, arch: ArchParams, sampler: Sampler, temperature: float
) -> Iterator[Mapping[str, Gate]]:
    """Yields new gates of a search, one draw at a time, without end."""
    while True:
        with torch.no_grad():
            drawn = draw(sampler, arch, temperature, generator)
        yield drawn.by_key(arch.keys, differentiable=False)
