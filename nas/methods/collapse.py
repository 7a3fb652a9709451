"""The collapse monitor checks whether skips and operations without parameters dominate the derived architecture."""

from nas.errors import ConfigError
from nas.methods.operation_kinds import Counts, Kinds


class CollapseMonitor:
    """Detects a collapsed search, which derives too many skips or other operations without parameters.

    Differentiable search tends to prefer such operations, above all skips (Zela et al. 2020; DARTS+, Liang et al. 2019,
    stops when a cell has two skips).

    skips, parameter_free: the largest allowed fractions of the derived choices; None for no limit. patience: epochs in
    a row over a limit that count as collapse, as the first epochs derive random architectures. stop: end the search at
    a collapse; otherwise it prints a warning and continues. kinds: of the supernet's candidates.
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
        if patience < 1 or patience != int(patience):  # the warning comes when the count equals it
            raise ConfigError(
                f"monitor.patience must be a whole number of at least 1, got {patience}", fix="set monitor.patience=1"
            )
        self.kinds = kinds
        self.skips = skips
        self.parameter_free = parameter_free
        self.patience = patience
        self.stop = stop

    def exceeded(self, counts: Counts) -> str | None:
        """Describes the first exceeded limit. Returns None if no limit is exceeded."""
        for limit, found, what in (
            (self.skips, counts.skips, "are skips"),
            (self.parameter_free, counts.parameter_free, "have no parameters"),
        ):
            if limit is not None and found > limit * counts.kept:
                return f"{found} of {counts.kept} derived operations {what}, more than {limit:.0%}"
        return None

    def epochs_in_a_row(self, before: int, counts: Counts) -> int:
        """The number of consecutive epochs, up to this epoch, that exceeded a limit.

        A number that has reached `patience` never falls again, so that it equals `patience` in at most one epoch of a
        search. before: the number after the previous epoch.
        """
        if self.exceeded(counts):
            return before + 1
        return 0 if before < self.patience else before
