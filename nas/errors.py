"""The errors a user can cause. Each says what was got, what was expected and how to fix it, on one line.

The commands print them without a traceback and exit with code 2; anything else that is raised is a defect of ours.
"""

from typing import Any

from nas.untrusted.escaping import printable


class NasError(Exception):
    """A mistake in what the framework was given.

    problem: what was got and what was expected, e.g. ``temperature must be > 0, got 0.0``.
    fix: what to do about it, e.g. ``set temperature.end to e.g. 0.1``.
    """

    def __init__(self, problem: str, *, fix: str) -> None:
        # They name files, classes and settings of others, and are printed.
        self.problem = printable(problem)
        self.fix = printable(fix)
        super().__init__(f"{self.problem}; {self.fix}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled by their positional arguments; ours has to cross from a data worker, too.
        return _rebuild, (type(self), self.problem, self.fix)


def _rebuild(kind: type[NasError], problem: str, fix: str) -> NasError:
    return kind(problem, fix=fix)


class ConfigError(NasError):
    """A setting has a value that cannot work."""


class DataError(NasError):
    """A data set is missing, empty, or not what the configuration says."""


class SpaceError(NasError):
    """A search space, or a model with choices in it, is not well formed."""


class DivergenceError(NasError):
    """Numbers that are learnt are no longer finite."""


class GenotypeError(NasError):
    """A genotype cannot be read, or does not fit the space."""


class CheckpointError(NasError):
    """A checkpoint cannot be read, or belongs to something else."""


class DeviceError(NasError):
    """The device that was asked for is not there."""


class OutputError(NasError):
    """The output directory cannot be written, or already holds something."""


class WorkerLostError(NasError):
    """A process that reads data has ended: killed by the system, which had no memory left, or by somebody.

    between_steps: whether no step was under way, so that the state of the run can be saved. saved: what of the run is
    saved, for the message.
    """

    between_steps = False
    saved = ""

    def __str__(self) -> str:
        return "; ".join(part for part in (self.problem, self.saved, self.fix) if part)


def described(error: BaseException) -> str:
    """Returns an error of other code as one line of limited length."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
