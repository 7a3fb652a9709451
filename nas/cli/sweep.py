"""Jobs of a sweep: a job that fails ends neither the sweep nor its neighbours."""

import os
from collections.abc import Sequence


class JobFailedError(Exception):
    """A job of a sweep has failed, after a line that says why. An Exception, which Hydra keeps until the other jobs
    have ended; a SystemExit would end them."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def named_job(given: Sequence[str]) -> str | None:
    """Returns the number of this job and the settings that differ in it; None outside a sweep.

    given: the arguments of the command that started the sweep. Also None under torchrun: a process that went on alone
    to the next job would wait for the others there.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    if hydra.mode is None or hydra.mode.name != "MULTIRUN" or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return None
    differ = [override for override in hydra.overrides.task if override not in given]
    return f"job {hydra.job.num}" + (f" ({', '.join(differ)})" if differ else "")
