"""The collapse monitor: whether the derived architecture is made of skips and of operations without parameters."""

from nas.errors import ConfigError
from nas.methods.operation_kinds import Counts, Kinds


class CollapseMonitor:
    """Differentiable search tends to prefer operations without parameters, skips above all (Zela et al. 2020; DARTS+,
    Liang et al. 2019, stops when a cell has two skips).

    skips, parameter_free: fractions of the derived choices that are more than allowed when exceeded; None for no
    limit. patience: how many epochs in a row they have to be exceeded before it counts, as in the first epochs what is
    derived is random. stop: end the search there; otherwise it is told and goes on.
    kinds: of the supernet's candidates.
    """

    def __init__(
        self,
        *,
        kinds: Kinds,
        skips: float | None = 0.5,
        parameter_free: float | None = 0.75,
        patience: int = 5,
        stop: bool = False,
    ) -> None:
        for name, limit in (("skips", skips), ("parameter_free", parameter_free)):
            if limit is not None and not 0 <= limit <= 1:
                raise ConfigError(
                    f"monitor.{name} is a fraction of the derived choices in [0, 1], got {limit:g}",
                    fix=f"set monitor.{name} to e.g. 0.5, or null for no limit",
                )
        if patience < 1:
            raise ConfigError(f"monitor.patience must be at least 1, got {patience}", fix="set monitor.patience=1")
        self.kinds = kinds
        self.skips = skips
        self.parameter_free = parameter_free
        self.patience = patience
        self.stop = stop

    def exceeded(self, counts: Counts) -> str | None:
        """What is exceeded, in words, if anything is."""
        for limit, found, what in (
            (self.skips, counts.skips, "are skips"),
            (self.parameter_free, counts.parameter_free, "have no parameters"),
        ):
            if limit is not None and found > limit * counts.kept:
                return f"{found} of {counts.kept} derived operations {what}, more than {limit:.0%}"
        return None

    def epochs_in_a_row(self, before: int, counts: Counts) -> int:
        """How many epochs up to this one exceeded a limit. Once `patience` is reached it does not fall again, so that
        it equals `patience` in one epoch of a search at most. before: its value an epoch ago."""
        if self.exceeded(counts):
            return before + 1
        return 0 if before < self.patience else before
