"""The networks that genotypes derive, before any training: how large they are, and which caps hold for them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nas.methods.cap import points_of, ranges
from nas.methods.timed_limit import Chosen, FileClock, TimedLimit, derive_within
from nas.methods.within_cap import Limit
from nas.spaces.space import Space
from nas.supernet.arch_params import ArchParams
from nas.supernet.genotype import Genotype
from nas.training.evaluate import count_parameters
from nas.training.job import Job


class Derived:
    """space: at the size of retraining. caps, times: see `nas.methods.cap.points_of`, whose errors are raised.

    limits: of the loosest of several caps. points: of each.
    """

    def __init__(
        self,
        job: Job,
        space: Space,
        *,
        arch: ArchParams,
        caps: Mapping[str, float | Sequence[float] | None],
        times: FileClock | None = None,
    ) -> None:
        self.job = job
        self.space = space
        self.arch = arch
        self.points = points_of(caps, arch=arch, space=space, spec=job.data.spec, times=times)
        self.limits = self.points[0]

    def network(self, genotype: Genotype) -> nn.Module:
        """The genotype's network, not trained."""
        return self.job.runtime.place(self.space.network(self.job.data.spec, genotype))

    def derive_within(self, derive: Callable[[], Chosen], limits: Sequence[Limit] | None = None) -> Chosen:
        """Derives a network. If a limit is on time, its file meets the cap, see `timed_limit.derive_within`.

        limits: None for those of the loosest caps."""
        timed = timed_of(self.limits if limits is None else limits)
        if timed is None:
            return derive()

        def network(chosen: Chosen) -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                return self.space.network(self.job.data.spec, Genotype(self.space.name, chosen)).eval()

        return derive_within(timed, derive, arch=self.arch, network=network)

    def parameters(self, genotype: Genotype) -> int:
        """The number of parameters of the genotype's network."""
        with self.space.sketching():
            return count_parameters(self.space.network(self.job.data.spec, genotype))

    def describe(self, genotype: Genotype) -> dict[str, float]:
        """The size of a genotype's network, and what the benchmark knows of it."""
        benchmark = self.job.benchmark
        return {
            "derived_parameters": self.parameters(genotype),
            **{f"derived_{one.name}": one.cost.of(genotype.choices) for one in self.limits if one.name != "parameters"},
            **({} if benchmark is None else benchmark.metrics(genotype)),
        }

    def cap_result(
        self,
        genotype: Genotype,
        *,
        measured: Mapping[str, Any] | None = None,
        limits: Sequence[Limit] | None = None,
    ) -> dict[str, Any]:
        """The caps as a part of ``result.json``, beside what the genotype's network is predicted to have; empty without
        caps. measured: what a trained network has, by the names of the caps, as far as that is known. limits: as in
        `met`."""
        found = {
            one.name: {
                "cap": whole(one.cap),
                "predicted": whole(one.cost.of(genotype.choices)),
                **({"measured": measured[one.name]} if measured and one.name in measured else {}),
                **(one.found if isinstance(one, TimedLimit) else {}),
            }
            for one in (self.limits if limits is None else limits)
        }
        return {"cap": found} if found else {}

    def ranges(self) -> dict[str, tuple[float, float]]:
        """See `nas.methods.cap.ranges`."""
        found = ranges(arch=self.arch, space=self.space, spec=self.job.data.spec)
        timed = timed_of(self.limits)
        return found if timed is None else found | {timed.name: timed.cost.reachable(self.arch.candidates)}


def timed_of(limits: Sequence[Limit]) -> TimedLimit | None:
    return next((one for one in limits if isinstance(one, TimedLimit)), None)


def whole(number: float) -> float:
    """An integer where the number is one."""
    return int(number) if float(number).is_integer() else number
