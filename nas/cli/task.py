"""Runs one configuration: a run, one that is resumed, or a job of a sweep."""

import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nas.cli import output, paths, sweep, torchrun
from nas.cli.exits import FAILED, INTERRUPTED, NOTHING_DONE, USER_ERROR, enough, fail, stopped, tell
from nas.cli.mistakes import explain, refuse_several_options, suggestion, untouched
from nas.cli.sweep import Job, JobFailedError
from nas.errors import ConfigError, NasError, described
from nas.settings import allowed_targets, configuration, schemas
from nas.storage import disk, lock, names
from nas.storage.command_line import setting
from nas.storage.signals import Interrupted
from nas.untrusted import plain_data

Body = Callable[[DictConfig, Path], float | list[float] | None]


def register() -> None:
    """Makes schemas and resolvers known, in the process of a launcher's job as well."""
    schemas.register_schemas()
    OmegaConf.register_new_resolver("nas.job_directory", sweep.job_directory, replace=True)


class Task:
    """Runs one configuration: checks it, resumes a run if asked, calls `body`, and prints a mistake in one line.

    options: of the command line, see `options`. base: the output directory that the command line gives. absent: that
    and its parents, as far as they did not exist. composed: whether this process has composed a configuration. begun:
    whether this command has begun the job of a sweep.
    """

    def __init__(
        self,
        config_name: str,
        body: Body,
        *,
        shared: bool,
        debug: bool = False,
        options: Sequence[str] = (),
        base: Path,
    ) -> None:
        self.config_name = config_name
        self.body = body
        self.shared = shared
        self.debug = debug
        self.options = options
        self.base = base
        self.absent = names.absent(base)
        self.composed = self.begun = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        register()  # a launcher's process has composed nothing itself

    def __call__(self, cfg: DictConfig) -> float | list[float] | None:
        from hydra.core.hydra_config import HydraConfig

        self.composed = True
        job = Job.current(f"nas-{self.config_name}", self.options)
        if job is None:
            directory = torchrun.common(Path(HydraConfig.get().runtime.output_dir), output.own)
            return self.run_or_explain(cfg, directory, None)
        print(f"\n{job.name}", flush=True)
        with job.own_command():
            return self.run_or_explain(cfg, job.directory, job)

    def run_or_explain(self, cfg: DictConfig, directory: Path, job: Job | None) -> float | list[float] | None:
        """Returns the result of the run, or prints one line about what went wrong and exits."""
        from omegaconf.errors import OmegaConfBaseException

        self.begun = False
        try:
            self.prepare(cfg, job)
            return self.run(cfg, directory) if job is None else self.run_job(cfg, job)
        except (NasError, OmegaConfBaseException) as error:
            if self.debug:
                raise
            # Not left to Hydra, which would add a line of its own.
            return self.failed(explain(error, self.config_name), USER_ERROR, job)
        except Interrupted as stop:
            begun = (directory / "manifest.json").exists()
            again = setting("resume", directory)
            if job is not None:
                again = f"the same command, of a sweep with {setting('hydra.sweep.dir', job.home)},"
            saved = f", all that was done is saved; {again} goes on"
            stopped(f"stopped by {stop}{saved if begun else ' before anything was done'}", 128 + stop.received)
        except KeyboardInterrupt:
            if self.debug:
                raise
            begun = (directory / "manifest.json").exists()
            fail(f"interrupted; what was reached is in {directory}" if begun else NOTHING_DONE, INTERRUPTED)
        except BrokenPipeError:
            enough()
        except JobFailedError:
            raise
        except Exception as error:
            if not self.debug and (refusal := disk.refusal(error)) is not None:
                refused = str(disk.refused(refusal, directory, Path(tempfile.gettempdir())))
                return self.failed(refused, USER_ERROR, job)
            if job is not None and not self.debug:
                traceback.print_exc()
                return self.failed(described(error), FAILED, job)
            if torchrun.tells_errors():
                raise
            sys.exit(FAILED)
        finally:
            # Hydra makes the directory before we can look at the configuration: a mistake shall leave nothing. Of
            # several processes each tries, as torchrun ends the others when the first of them is gone.
            names.release(directory)
            if directory in self.absent or directory != self.base:  # not one that the user has made
                names.remove_if_empty(directory, above=self.absent)

    def prepare(self, cfg: DictConfig, job: Job | None) -> None:
        """Checks the configuration as a whole, and completes it. Raises ConfigError for a mistake."""
        from hydra.core.hydra_config import HydraConfig

        look_here(cfg)
        refuse_several_options(HydraConfig.get().overrides.task)
        if unknown := next(schemas.added(cfg), None):
            raise ConfigError(f"{unknown} is not a setting", fix=suggestion(unknown, self.config_name))
        if (unread := cfg.get("experiment")) is not None:
            raise ConfigError(
                f"the settings of the preset experiment={HydraConfig.get().runtime.choices.get('experiment')} are "
                f"those of a group, which nothing reads, got {unread!s:.80}",
                fix="begin its file with the line # @package _global_",
            )
        paths.anchored(cfg)
        chosen = sweep.prepare(cfg, f"nas-{self.config_name}")
        if job is not None:
            job.command.extend(chosen)
            sys.argv = list(job.command)
        if not self.shared:
            torchrun.refuse_several(f"nas-{self.config_name}")

    def failed(self, message: str, code: int, job: Job | None) -> float | None:
        """Prints the message and exits.

        A job of a sweep records the message instead, and the sweep starts its next job.
        """
        if job is None:
            fail(message, code)
        tell(f"{job.name}: {message}")
        before = job.before
        if not self.begun and before.get("status") in ("finished", "running"):
            # A mistaken command: what is there stays, and the right command goes on with it.
            job.record(before["status"], objective=before.get("objective"), refused=message)
        else:
            job.record("failed", error=message)
        if sweep.optimises():
            raise JobFailedError(code) from None  # the sweeper gets no number of it
        return None

    def run(self, cfg: DictConfig, directory: Path) -> float | list[float] | None:
        """Runs the command outside a sweep. It continues an earlier run if ``resume`` is set."""
        if OmegaConf.select(cfg, "resume") == "auto":
            held = (directory / "manifest.json").exists()
            return self.go_on(cfg, directory, as_before=True) if torchrun.agreed(held) else self.begin(cfg, directory)
        if torchrun.has_restarted() and (directory / "manifest.json").exists():
            OmegaConf.update(cfg, "resume", str(directory))
        if OmegaConf.select(cfg, "resume") is not None:
            return self.go_on(cfg, Path(cfg.resume), as_before=False)
        return self.body(cfg, directory)

    def begin(self, cfg: DictConfig, directory: Path) -> float | list[float] | None:
        cfg.resume = None
        return self.body(cfg, directory)

    def go_on(self, cfg: DictConfig, directory: Path, *, as_before: bool) -> float | list[float] | None:
        """Continues the run in a directory. as_before: whether all settings must equal those of the run."""
        from hydra.core.hydra_config import HydraConfig

        cfg.resume = str(directory)
        if os.path.lexists(directory / "config.yaml"):
            configuration.read_yaml(directory / "config.yaml")  # what cannot be read is said at once
        # Imports torch, which takes seconds.
        from nas.cli.resume import check_command, check_same, has_finished, resumed

        if as_before:
            check_command(directory, f"nas-{self.config_name}")
            check_same(cfg, directory)
        untouched_settings = paths.anchored(untouched(self.config_name))
        continued = functools.partial(resumed, cfg, untouched_settings, HydraConfig.get().overrides.task)
        if has_finished(directory):
            if not as_before:
                continued()  # refuses other settings, which would have no effect
            change = ", or to change" if cfg.may_change else ""
            print(f"The run in {directory} has finished: there is nothing to resume{change}.")
            return None
        return self.body(continued(), directory)

    def run_job(self, cfg: DictConfig, job: Job) -> float | list[float] | None:
        """Runs a job of a sweep. A finished job is skipped; a killed job continues."""
        before = job.before
        if cfg.get("resume") is not None:
            raise ConfigError(
                f"resume={cfg.resume} is of one run, got a sweep",
                fix="leave it out: the same command with its hydra.sweep.dir goes on with a sweep",
            )
        begun = "resume" in cfg and (job.directory / "manifest.json").exists()
        if begun:
            from nas.cli.resume import check_command, check_same

            check_command(job.directory, f"nas-{self.config_name}")
            check_same(cfg, job.directory)
        if cfg.get("dry_run"):  # nothing has been done
            return self.body(cfg, job.directory)
        if job.has_finished():
            print(f"{job.name} has finished before")
            job.record("finished", objective=before.get("objective"))
            return as_value(before.get("objective"))
        corrected = not begun and before.get("sweep") != job.sweep
        if before.get("status") == "failed" and not cfg.get("retry_failed") and not corrected:
            tell(f"{job.name} has failed before and is not repeated, retry_failed=true does so: {before.get('error')}")
            job.record("failed", error=before.get("error"))
            if sweep.optimises():
                raise JobFailedError(USER_ERROR)
            return None
        if begun and cfg.lock and is_held(job.directory):
            # As when a cluster still has the jobs of a launching process that is gone.
            tell(f"{job.name} is being run by another process")
            if sweep.optimises():
                raise JobFailedError(USER_ERROR)
            return None
        job.record("running")
        self.begun = True
        value = self.go_on(cfg, job.directory, as_before=False) if begun else self.body(cfg, job.directory)
        if value is None and sweep.optimises():
            value = recorded_objective(job.directory, several=OmegaConf.is_list(cfg.objective))
        job.record("finished", objective=value)
        return value


def look_here(cfg: DictConfig) -> None:
    """Lets Python find packages in the working directory if the configuration allows targets.

    An installed command does not look for packages where it is started. The user's own may lie there. The directory is
    last in the list, so that no file there stands in for an installed module.
    """
    if allowed_targets.allowed(cfg) and (here := os.getcwd()) not in sys.path:
        sys.path.append(here)


def as_value(found: Any) -> float | list[float] | None:
    """Returns an objective that was read from a file."""
    if isinstance(found, list):
        return [float(one) for one in found]
    return float(found) if isinstance(found, int | float) else None


def is_held(directory: Path) -> bool:
    """Says whether another process runs in a directory."""
    if (descriptor := lock.take(directory)) is None:
        return True
    os.close(descriptor)
    return False


def recorded_objective(directory: Path, *, several: bool) -> float | list[float] | None:
    """Returns the objective of a run that was killed after it had finished."""
    try:
        found = list(plain_data.dict_in(directory / "result.json")["objective"].values())
    except (KeyError, AttributeError):
        return None
    return as_value(found if several else found[0])
