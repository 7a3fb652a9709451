"""Regularisers that pull the expected cost of the drawn network to a target: parameters, multiply-accumulates,
latency."""

from pathlib import Path

import torch
from torch import Tensor, nn

from nas.data.inputs import Inputs
from nas.data.spec import DataSpec
from nas.errors import ConfigError
from nas.methods.cost import Cost, Expectation
from nas.methods.counted_costs import macs, parameters
from nas.methods.latency_table import LatencyTable
from nas.methods.regulariser import Regulariser
from nas.spaces.space import Space
from nas.supernet.arch_params import ArchParams
from nas.training.schedule import Schedule


class CostTarget(Regulariser):
    """weight * |E[cost] / target - 1|, the absolute reward of TuNAS (Bender et al. 2020) as a penalty.

    The expectation is over architectures whose choices are drawn independently by softmax(logits), and exact: nested
    choices multiply, choices that share a key are drawn together. It is two-sided: a network that is cheaper than it
    may be leaves accuracy behind. A deriver that drops edges makes the network cheaper than what was drawn.

    Raises ConfigError for a target that no architecture costs less, or no architecture costs more than.
    what: the name of the group's option, unit: of the target, for messages.
    """

    def __init__(self, cost: Cost, *, arch: ArchParams, target: float, weight: Schedule, what: str, unit: str) -> None:
        least, most = cost.reachable(arch.candidates)
        if not (target > 0 and least <= target <= most):
            raise ConfigError(
                f"regulariser.{what}.target is {target:,.10g} {unit}, which no architecture of the space can reach, "
                f"expected {least:,.10g} to {most:,.10g} at the size it is retrained in",
                fix=f"set regulariser.{what}.target within that range, or change retrain.network",
            )
        self._expected = Expectation(cost, arch)
        self.target = target
        self.weight = weight

    def expected(self, arch: ArchParams) -> Tensor:
        """In the target's unit, a scalar."""
        return self._expected(arch.probs())

    def __call__(self, arch: ArchParams, progress: float) -> Tensor:
        return self.weight(progress) * (self.expected(arch) / self.target - 1).abs()

    def metrics(self, arch: ArchParams) -> dict[str, float]:
        return {"expected": float(self.expected(arch).detach())}


def sketch(space: Space, spec: DataSpec, batch: int = 1) -> tuple[nn.Module, Inputs]:
    """The network as it is retrained, its choices open, and a batch for it; to be used inside ``space.sketching()``."""
    model = space.build(spec, affine=True)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return model, spec.zeros(device=device, batch=batch)


class Parameters(CostTarget):
    """Trainable parameters, as ``parameters`` in a result."""

    def __init__(self, *, arch: ArchParams, space: Space, spec: DataSpec, target: float, weight: Schedule) -> None:
        with space.sketching():
            cost = parameters(space.build(spec, affine=True))
        super().__init__(cost, arch=arch, target=target, weight=weight, what="parameters", unit="parameters")


class Macs(CostTarget):
    """Multiply-accumulates of one example, as ``macs`` in a result."""

    def __init__(self, *, arch: ArchParams, space: Space, spec: DataSpec, target: float, weight: Schedule) -> None:
        with space.sketching():
            cost = macs(*sketch(space, spec))
        super().__init__(cost, arch=arch, target=target, weight=weight, what="macs", unit="multiply-accumulates")


class Latency(CostTarget):
    """Milliseconds of a batch, by a table that scripts/measure_latency has written.

    Latencies add up only roughly: what a device runs side by side, or keeps in its cache, a sum does not know.
    """

    def __init__(
        self, *, arch: ArchParams, space: Space, spec: DataSpec, table: str, target: float, weight: Schedule
    ) -> None:
        measured = LatencyTable.load(Path(table))
        with space.sketching():
            cost = measured.cost(*sketch(space, spec, measured.batch))
        super().__init__(cost, arch=arch, target=target, weight=weight, what="latency", unit="ms")
