"""The objective that a job returns to a sweeper: never the score on the test split."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf
from torch import nn

from nas.cli.sweep import directions
from nas.data.spec import DataSpec
from nas.errors import ConfigError, DivergenceError
from nas.runtime.runtime import device_of
from nas.training.evaluate import Score, count_macs, count_parameters
from nas.training.latency import latency
from nas.training.task import Metric

NAMES = ("score", "loss", "macs", "parameters", "latency")
OF_EXAMPLES = ("score", "loss")  # which need examples that the network has not seen
SECONDS = 1.0  # that the latency is measured for, after a fifth of it to warm up


@dataclass(frozen=True)
class Objective:
    """An objective.

    names: of `NAMES`. several: whether the sweeper receives a list. metric: the task's, which is the score.
    """

    names: tuple[str, ...]
    several: bool
    metric: Metric

    @classmethod
    def from_config(cls, cfg: DictConfig, metric: Metric) -> "Objective | None":
        """Returns the objective of the setting ``objective``; None if there is none.

        Raises ConfigError for unknown names, for a score if the retraining sees all examples, and if the sweeper
        optimises
        in the wrong direction.
        """
        if cfg.objective is None:
            return None
        several = OmegaConf.is_list(cfg.objective)
        given = [str(name) for name in (cfg.objective if several else [cfg.objective])]
        names = tuple("score" if name == metric.name else name for name in given)
        if unknown := [name for name in names if name not in NAMES] or ([] if names else ["nothing"]):
            raise ConfigError(
                f"objective has {unknown[0]}, expected some of {', '.join(NAMES)} or {metric.name}",
                fix="set objective=score, or objective=[score,macs]",
            )
        made = cls(names, several, metric)
        made.check_directions(directions())
        return made

    @property
    def needs_examples(self) -> bool:
        return bool(set(self.names) & set(OF_EXAMPLES))

    def check_directions(self, directions: Sequence[str] | None) -> None:
        """Raises ConfigError unless the sweeper looks for the better end of each name. None: there is no sweeper."""
        if directions is None:
            return
        right = ["maximize" if name == "score" and self.metric.higher_is_better else "minimize" for name in self.names]
        if list(directions) != right:
            fix = right[0] if len(right) == 1 else f"[{','.join(right)}]"
            raise ConfigError(
                f"objective={','.join(self.names)} is optimised by {', '.join(right)}, got hydra.sweeper.direction="
                f"{','.join(directions)}",
                fix=f"set hydra.sweeper.direction={fix}",
            )

    def measured(self, network: Callable[[], nn.Module], spec: DataSpec, score: Score | None) -> dict[str, float]:
        """Returns name -> value.

        network: called, if it is needed, for the network in eval mode. score: on examples that the
        network has not seen; None if no name needs it.

        Raises DivergenceError if a value is not a finite number.
        """
        found: dict[str, float] = {}
        for name in self.names:
            if name in OF_EXAMPLES:
                assert score is not None
                found[name] = score.metric if name == "score" else score.loss
            else:
                found[name] = MEASURED[name](network(), spec)
            if not math.isfinite(found[name]):  # infinity is none either in the record of a job
                raise DivergenceError(f"the objective {name} is {found[name]}, expected a number", fix="see the losses")
        return found

    def value(self, measured: Mapping[str, float]) -> float | list[float]:
        """Returns what the sweeper receives."""
        values = [float(measured[name]) for name in self.names]
        return values if self.several else values[0]


def milliseconds(network: nn.Module, spec: DataSpec) -> float:
    """Returns the median time of a forward pass of one example, in milliseconds."""
    return latency(network, spec.zeros(device=device_of(network)), batch=1, seconds=SECONDS).median_ms


MEASURED: dict[str, Callable[[nn.Module, DataSpec], float]] = {
    "macs": lambda network, spec: float(count_macs(network, spec)),
    "parameters": lambda network, spec: float(count_parameters(network)),
    "latency": milliseconds,
}
