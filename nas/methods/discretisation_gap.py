"""The discretisation gap: what is lost between the network a search trains and the one it derives."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch

from nas.methods.sampler import Sampler, draw
from nas.methods.supernet_score import Judge
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Gate

FORMS = ("relaxed", "derived", "recalibrated")


@dataclass(frozen=True)
class Gap:
    """The task's metric of one supernet in three forms, on the same `examples` of the architecture's split.

    relaxed: under the gates that the search trains with, batch norms with the statistics of each batch, as in its
    steps. A sampler that draws gives every batch a draw of its own, so this is its mean over as many draws as batches.
    derived: with the derived operations only, batch norms with the running statistics that the search left.
    recalibrated: the same with statistics re-estimated for these operations on as many batches of the weights' split.

    relaxed - recalibrated is what discretisation costs; recalibrated - derived is owed to stale statistics alone.
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
        return cls(
            judge.relaxed(draws(judge.generator(), arch=arch, sampler=sampler, temperature=temperature)).metric,
            judge.decided(chosen, recalibrated=False).metric,
            judge.decided(chosen, recalibrated=True).metric,
            judge.examples,
        )

    def metrics(self) -> dict[str, float]:
        """As they are logged."""
        return {f"gap/{name}": getattr(self, name) for name in FORMS}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float], *, examples: int) -> "Gap":
        """What `metrics` made of it, out of all that was logged."""
        return cls(**{name: metrics[f"gap/{name}"] for name in FORMS}, examples=examples)

    def to_dict(self) -> dict[str, float | None]:
        """For ``result.json``: JSON has no NaN and no infinity."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def draws(
    generator: torch.Generator, *, arch: ArchParams, sampler: Sampler, temperature: float
) -> Iterator[Mapping[str, Gate]]:
    """The gates of a search, draw after draw."""
    while True:
        with torch.no_grad():
            drawn = draw(sampler, arch, temperature, generator)
        yield drawn.by_key(arch.keys, differentiable=False)
