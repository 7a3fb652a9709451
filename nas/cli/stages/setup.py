"""Builds what the stages of a run share from the configuration, and opens the run's directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nas.adapt.teacher import Teacher
from nas.cli.report import show_data
from nas.cli.stages.for_report import changed
from nas.data.bundle import DataBundle
from nas.data.survey import facts
from nas.errors import ConfigError, DataError
from nas.runtime import distributed
from nas.runtime.runtime import Runtime
from nas.settings.allowed_targets import allowed
from nas.settings.building import complete
from nas.settings.configuration import SIZE_LIMIT, build, to_plain, to_yaml
from nas.spaces.nas_bench_201_table import NasBench201Table
from nas.spaces.space import Space
from nas.storage.forwarded import check_installed, opened_tracker
from nas.storage.metrics_log import JsonLines, Silent
from nas.storage.run_directory import RunDirectory, check_usable, command_line
from nas.training.job import Job, check_seed
from nas.training.records import Records, description
from nas.training.task import Task, check_targets


@dataclass(frozen=True, kw_only=True)
class Setup(Job):
    """The objects that all stages of a run share. A stage reads `cfg` while it is built; nothing reads it later."""

    cfg: DictConfig
    opening: "Opening"

    @classmethod
    def from_config(cls, cfg: DictConfig, directory: Path | None = None) -> "Setup":
        """directory: of the run. Raises OutputError if a new run cannot use it: now, not after seconds of work."""
        if directory is not None and cfg.resume is None and not cfg.dry_run and distributed.first():
            check_usable(directory, config=to_yaml(cfg), lock=cfg.lock)
        allow = allowed(cfg)
        check_seed(cfg.seed)
        runtime: Runtime = build(cfg.runtime, allow=allow)
        space: Space = build(cfg.space, allow=allow)
        task: Task = build(cfg.task, allow=allow)
        benchmark = open_benchmark(cfg)
        opening = Opening.from_config(cfg)
        with distributed.first_on_machine_first(), advice_for_moved_data(cfg):
            data: DataBundle = build(cfg.data, allow=allow).load()
        check_targets(task, data.spec, training=data.train, test=data.test)
        teacher: Teacher | None = None if cfg.get("teacher") is None else build(cfg.teacher, allow=allow)
        return cls(
            cfg=cfg,
            opening=opening,
            runtime=runtime,
            space=space,
            benchmark=benchmark,
            task=task,
            data=data,
            seed=cfg.seed,
            progress=distributed.first(),
            distillation=None if teacher is None else teacher.distillation(space, data.spec, runtime, seed=cfg.seed),
        )

    def build(self, node: Any, **arguments: Any) -> Any:
        return build(node, allow=allowed(self.cfg), **arguments)

    def open(self, directory: Path) -> RunDirectory:
        opening = self.opening
        out = RunDirectory(
            directory,
            config=opening.text,
            command=command_line(),
            seed=self.seed,
            runtime=self.runtime,
            resume=opening.resume,
            writes=distributed.first(),
            lock=opening.lock,
        )
        if out.writes:
            # A sweep's objective is known before the test split is read, which happens at the end.
            found = facts(self.data, compared=not opening.objective)
            out.record(data=found, changed=opening.changed)
            show_data(found)
        return out

    def track(self, out: RunDirectory) -> JsonLines:
        if not out.writes:
            return Silent()
        opening = self.opening
        tracker = opened_tracker(opening.tracker, out.path)
        metric = self.task.metric.name
        tracker.describe(**description(opening.settings, text=opening.text, command=command_line(), metric=metric))
        return tracker

    def records(self, out: RunDirectory, tracker: JsonLines) -> Records:
        """Returns the records that the stages write to."""
        opening = self.opening
        return Records(
            directory=out,
            tracker=tracker,
            saving=opening.saving,
            settings=opening.settings,
            may_change=opening.may_change,
            profile=self.runtime.profile,
        )


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The settings of the run's directory.

    settings, text: the whole configuration, as plain data and as YAML. changed: the settings that differ from the
    defaults. objective: whether a sweeper receives one.
    """

    settings: dict[str, Any]
    text: str
    changed: dict[str, list[Any]]
    objective: bool
    resume: bool
    lock: bool
    may_change: tuple[str, ...]
    tracker: Any
    saving: Any

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "Opening":
        """Raises ConfigError if the tracker or the checkpoints cannot be built, or if there are too many settings."""
        allow, text = allowed(cfg), to_yaml(cfg)
        if len(text) > SIZE_LIMIT:
            raise ConfigError(
                f"the settings take {len(text)} bytes, expected at most {SIZE_LIMIT}, which a resumed run reads",
                fix="put long lists into a file, and give its path to a factory of your own",
            )
        tracker, saving = build(cfg.tracker, allow=allow), build(cfg.saving, allow=allow)
        check_installed(tracker)
        complete(saving, path=Path(), kind="search")  # only tried: a mistake in it is to leave no directory
        return cls(
            settings=to_plain(cfg),
            text=text,
            changed=changed(cfg),
            objective=cfg.objective is not None,
            resume=cfg.resume is not None,
            lock=cfg.lock,
            may_change=tuple(cfg.may_change),
            tracker=tracker,
            saving=saving,
        )


@contextmanager
def advice_for_moved_data(cfg: DictConfig) -> Iterator[None]:
    """A context that adds advice to the error if a resumed run does not find its data."""
    try:
        yield
    except DataError as error:
        root = cfg.data.get("root")
        if cfg.resume is None or root is None:
            raise
        relative = "" if Path(root).is_absolute() else f"start this where the run was started, as {root} is relative; "
        raise DataError(
            error.problem,
            fix=f"{relative}if the data have moved, give their new place: data.root=... may_change=[data.root]",
        ) from error


def open_benchmark(cfg: DictConfig) -> NasBench201Table | None:
    """Opens the table of the group ``benchmark``, if one was chosen."""
    if cfg.benchmark is None:
        return None
    table: NasBench201Table = build(cfg.benchmark, allow=list(cfg.allow_targets))
    return table
