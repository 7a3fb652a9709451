"""Jobs of a sweep. Each has its own directory, name and command, and a file that says how it ended.

A job that fails ends neither the sweep nor other jobs. The same sweep, started again, skips finished jobs and
continues killed ones.
"""

import contextlib
import hashlib
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from nas.cli import torchrun
from nas.errors import ConfigError
from nas.storage import atomic, names
from nas.storage.command_line import hydra_value
from nas.untrusted import plain_data

RECORD = ".job.json"
LONGEST = 100  # characters of a job's directory
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"
COMMAND = "++hydra.job.env_set.NAS_SWEEP"  # tells the jobs of one command from those of another in the same directory
OF_SWEEPS = ("hydra.sweep.", "hydra/sweeper", "hydra.sweeper", "hydra/launcher", "hydra.launcher", "hydra.mode")


class JobFailedError(Exception):
    """A job of a sweep has failed and has printed why.

    It is an Exception, which Hydra keeps until the other jobs have ended. A SystemExit would end them.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


home: list[Path] = []  # the directory of the sweep that this process has begun
command: list[str] = []  # the digest of its command


class Beginning(Callback):  # type: ignore[misc]
    """Prepares a sweep before its first job: its own directory, and the settings that all jobs share."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with contextlib.suppress(OSError):  # which Hydra would show as a warning, before it meets the same itself
            begin(config)


def begin(config: DictConfig, *, varied: Collection[str] = ()) -> None:
    """Prepares a sweep: claims its directory, and notes which settings all jobs share.

    config: Hydra's configuration, changed in place. Hydra composes each job's configuration from its overrides.
    varied: settings that jobs may change, beside the settings that the command line sweeps over.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    # As they are written: hydra.sweep.subdir=${hydra.job.num} has no value before there is a job.
    overrides, task = (OmegaConf.to_container(config.hydra.overrides[kind]) for kind in ("hydra", "task"))
    assert isinstance(overrides, list)
    assert isinstance(task, list)
    given = any(override.startswith("hydra.sweep.dir=") for override in overrides)
    directory = Path(str(config.hydra.sweep.dir)).absolute()
    alone = torchrun.started() == 1  # else see `in_sweep`
    if alone:
        directory = directory if given else names.claimed(directory)
        home[:] = [directory]
    raw = OverridesParser.create().parse_overrides(task)
    sweeps = {place(override): override.is_sweep_override() for override in raw}  # the last one counts
    common = [f'"{key}"' for key, varies in sweeps.items() if not varies and key not in varied]
    text = "\n".join(one for one in task if "retry_failed=" not in one)
    command[:] = [hashlib.sha256(text.encode()).hexdigest()[:12]]
    added = [f"{EXCLUDED}=[{','.join(common)}]", f"{COMMAND}={hydra_value(command[0])}"]
    if alone:
        overrides = [override for override in overrides if not override.startswith("hydra.sweep.dir=")]
        added.append(f"hydra.sweep.dir={hydra_value(str(directory))}")
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra = overrides + added
        config.hydra.sweep.dir = str(directory)
        # A failed job shall not end the sweep.
        if config.hydra.sweeper.get("max_failure_rate") == 0.0:
            config.hydra.sweeper.max_failure_rate = 1.0


def discard(base: Path, absent: Collection[Path]) -> None:
    """Removes the directory of the sweep that this process began, if it holds only what Hydra has written there.

    base, absent: see `nas.cli.task.Task`.
    """
    if not home:
        return
    names.release(home[0])
    if home[0] in absent or home[0] != base:  # not one that the user has made
        with contextlib.suppress(OSError):
            if [path.name for path in home[0].iterdir()] == ["multirun.yaml"]:
                (home[0] / "multirun.yaml").unlink()
        names.remove_if_empty(home[0], above=absent)


def hydra() -> Any:
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get()


def in_sweep() -> bool:
    """Says whether this is a job of a sweep.

    Under torchrun it is not: processes would start the next job at different times.
    """
    mode = hydra().mode
    return mode is not None and mode.name == "MULTIRUN" and torchrun.started() == 1


def optimises() -> bool:
    """Says whether this is a job of a sweep whose sweeper receives an objective."""
    mode, sweeper = hydra().mode, hydra().sweeper
    return mode is not None and mode.name == "MULTIRUN" and sweeper.get("_target_", BASIC) != BASIC


def directions() -> list[str] | None:
    """Returns maximize or minimize for each objective of the sweeper; None if the sweeper has no such setting."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized() or not optimises():
        return None
    given = hydra().sweeper.get("direction")
    if given is None:
        return None
    several = OmegaConf.is_list(given)
    return [str(getattr(one, "name", one)) for one in (given if several else [given])]


def differing() -> list[str]:
    """Returns the settings of this job that the sweep may vary."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    common = set(hydra().job.config.override_dirname.exclude_keys)
    parsed = OverridesParser.create().parse_overrides(list(hydra().overrides.task))
    last = {place(override): str(override.input_line) for override in parsed}  # the last of a key counts
    return [line for key, line in last.items() if key not in common]


def place(override: Any) -> str:
    """Returns the setting or the group of an override, with the place of a group that is chosen at several places."""
    return str(override.get_key_element()).lstrip("+~")


def job_directory() -> str:
    """Returns the name of this job's directory: its number and its varied settings, cut to the length that a path can
    hold.
    """
    text = "_".join(differing())
    plain = re.sub(r"[^A-Za-z0-9_.+-]", "-", text)
    if len(plain) > LONGEST:
        plain = f"{plain[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{hydra().job.num}_{plain}".rstrip("_")


@dataclass(frozen=True)
class Job:
    """One job.

    name: its number and varied settings. directory: its own. command: the command that repeats this run alone.
    home: the directory of the sweep.
    """

    number: int
    name: str
    settings: list[str]
    directory: Path
    command: list[str]
    home: Path

    @classmethod
    def current(cls, command: str, options: Sequence[str]) -> "Job | None":
        """Returns the job that this process runs; None outside a sweep. options: of the command line, for all jobs."""
        if not in_sweep():
            return None
        settings = differing()
        directory = Path(hydra().runtime.output_dir)
        kept = [o for o in hydra().overrides.hydra if not o.startswith((*OF_SWEEPS, EXCLUDED, COMMAND))]
        own = [command, *options, *hydra().overrides.task, *kept, f"hydra.run.dir={hydra_value(str(directory))}"]
        number = int(hydra().job.num)
        name = f"job {number}" + (f" ({', '.join(settings)})" if settings else "")
        return cls(number, name, settings, directory, own, Path(str(hydra().sweep.dir)).absolute())

    @contextlib.contextmanager
    def own_command(self) -> Iterator[None]:
        """A context in which the job's own command is the command of the process, as manifest, model card and messages
        use it.
        """
        before = sys.argv
        sys.argv = list(self.command)
        try:
            yield
        finally:
            sys.argv = before

    @property
    def before(self) -> dict[str, Any]:
        """Returns what the job recorded when it ran before; {} if it never did."""
        return record_of(self.directory / RECORD) or {}

    def record(self, status: str, **facts: Any) -> None:
        """Records how the job stands. status: running, finished or failed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        known = {"number": self.number, "settings": self.settings, "command": self.command, "sweep": self.sweep}
        left = {"left": self.left()} if status == "finished" else {}
        atomic.write_json(self.directory / RECORD, {**known, "status": status, **left, **facts})

    @property
    def sweep(self) -> str:
        """Returns the digest of the command that began the sweep, see `begin`."""
        return str((hydra().job.get("env_set") or {}).get(COMMAND.rpartition(".")[2], ""))

    def left(self) -> bool:
        """Says whether there are files of the job. nas-draw, for one, writes elsewhere."""
        return any(not path.name.startswith(".") for path in self.directory.iterdir())

    def has_finished(self) -> bool:
        """Says whether the job has finished before. One whose files have been deleted has not."""
        before = self.before
        return before.get("status") == "finished" and (self.left() or before.get("left") is False)


def record_of(path: Path) -> dict[str, Any] | None:
    found = plain_data.dict_in(path)
    if type(found.get("number")) is not int:
        return None
    return found if isinstance(found.get("settings", []), list) else None


def prepare(cfg: DictConfig, command: str) -> list[str]:
    """In a sweep that optimises, chooses an objective and holds out examples for it. Changes `cfg` in place.

    Returns what it has set, as on a command line. Raises ConfigError if no examples can be held out: the sweeper would
    receive the test score, or if there are several processes: each would have a sweeper, and one an objective.
    """
    chosen: list[str] = []
    if optimises() and (processes := torchrun.started()) > 1:
        raise ConfigError(
            f"a sweep that optimises works in one process, got {processes}",
            fix="start it without torchrun, and jobs side by side by a launcher, e.g. hydra/launcher=joblib",
        )
    if "objective" not in cfg:
        return chosen
    if optimises() and cfg.objective is None:
        cfg.objective = "score"
        chosen.append("objective=score")
    given = cfg.objective if OmegaConf.is_list(cfg.objective) else [cfg.objective]
    of_sizes = all(name in ("macs", "parameters", "latency") for name in given)
    if cfg.objective is None or of_sizes or command == "nas-search" or cfg.retrain.validation:
        return chosen
    if cfg.retrain.validation is not None or not optimises():
        raise ConfigError(
            f"objective={cfg.objective} needs examples that the retraining does not see, got retrain.validation="
            f"{'null' if cfg.retrain.validation is None else cfg.retrain.validation}",
            fix="set retrain.validation=0.1",
        )
    cfg.retrain.validation = 0.1
    return [*chosen, "retrain.validation=0.1"]
