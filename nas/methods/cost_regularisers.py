"""Regularisers that pull the expected cost of the drawn network towards a target.

The cost is the number of parameters or multiply-accumulates, or the latency.
"""

import hashlib
from pathlib import Path

from torch import Tensor, nn

from nas.data.inputs import Inputs
from nas.data.spec import DataSpec
from nas.errors import ConfigError
from nas.methods.cost import Cost, Expectation
from nas.methods.counted_costs import macs, parameters
from nas.methods.latency_table import LatencyTable
from nas.methods.regulariser import Regulariser
from nas.runtime.runtime import device_of
from nas.spaces.space import Space
from nas.supernet.arch_params import ArchParams
from nas.training.schedule import Schedule


class CostTarget(Regulariser):
    """weight * |E[cost] / target - 1|, the absolute reward of TuNAS (Bender et al. 2020) as a penalty.

    The expectation is exact, over architectures whose choices are drawn independently by softmax(logits): nested
    choices multiply, choices with the same key are drawn together. The penalty has two sides, because a network that is
    cheaper than the target gives up accuracy. A deriver that drops edges makes the network cheaper than expected.

    Raises ConfigError if every architecture costs more, or every architecture costs less, than the target.
    what: the name of the group's option. unit: the unit of the target. Both are for messages.
    """

    def __init__(self, cost: Cost, *, arch: ArchParams, target: float, weight: Schedule, what: str, unit: str) -> None:
        least, most = cost.reachable(arch.candidates)
        if not (target > 0 and least <= target <= most):
            raise ConfigError(
                f"regulariser.{what}.target is {target:,.10g} {unit}, which no architecture of the space can reach, "
                f"expected {least:,.10g} to {most:,.10g} for the network that is retrained",
                fix=f"set regulariser.{what}.target within this range, or change retrain.network",
            )
        self._expected = Expectation(cost, arch)
        self.target = target
        self.weight = weight

    def expected(self, arch: ArchParams) -> Tensor:
        """The expected cost, a scalar in the target's unit."""
        return self._expected(arch.probs())

    def __call__(self, arch: ArchParams, progress: float) -> Tensor:
        return self.weight(progress) * (self.expected(arch) / self.target - 1).abs()

    def metrics(self, arch: ArchParams) -> dict[str, float]:
        return {"expected": float(self.expected(arch).detach())}


def sketch(space: Space, spec: DataSpec, batch: int = 1) -> tuple[nn.Module, Inputs]:
    """The model at the size of retraining, with its choices, and a batch. Use inside ``space.sketching()``."""
    model = space.build(spec, affine=True)
    return model, spec.zeros(device=device_of(model), batch=batch)


class Parameters(CostTarget):
    """The number of trainable parameters, as ``parameters`` in a result."""

    def __init__(self, *, arch: ArchParams, space: Space, spec: DataSpec, target: float, weight: Schedule) -> None:
        with space.sketching():
            cost = parameters(space.build(spec, affine=True))
        super().__init__(cost, arch=arch, target=target, weight=weight, what="parameters", unit="parameters")


class Macs(CostTarget):
    """The multiply-accumulates for one example, as ``macs`` in a result."""

    def __init__(self, *, arch: ArchParams, space: Space, spec: DataSpec, target: float, weight: Schedule) -> None:
        with space.sketching():
            cost = macs(*sketch(space, spec))
        super().__init__(cost, arch=arch, target=target, weight=weight, what="macs", unit="multiply-accumulates")


class Latency(CostTarget):
    """The milliseconds for a batch, from a table that scripts/measure_latency has written.

    The sum of latencies is only an estimate: it ignores parallel execution on the device and caches.
    """

    def __init__(
        self, *, arch: ArchParams, space: Space, spec: DataSpec, table: str, target: float, weight: Schedule
    ) -> None:
        measured = LatencyTable.load(Path(table))
        with space.sketching():
            cost = measured.cost(*sketch(space, spec, measured.batch))
        super().__init__(cost, arch=arch, target=target, weight=weight, what="latency", unit="ms")
        # Of the times, for checkpoints: the table may be measured again before a run is resumed.
        self.digest = hashlib.sha256(repr([float(time) for time in cost.terms.values()]).encode()).hexdigest()
