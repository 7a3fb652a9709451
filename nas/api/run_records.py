"""The settings, directory and metrics that a run from Python records."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from nas.adapt.teacher import teacher_of
from nas.data import given, survey
from nas.data.image_folder import ImageFolder
from nas.errors import ConfigError
from nas.runtime import distributed
from nas.runtime.user_functions import import_path
from nas.settings.arguments import path_of, settings_of
from nas.settings.building import callable_itself, complete, described
from nas.settings.names import NAME
from nas.storage.forwarded import check_installed, opened_tracker
from nas.storage.metrics_log import Silent
from nas.storage.run_directory import MANIFEST, RunDirectory, command_line
from nas.training.job import Job
from nas.training.records import Records, description


def recorded_settings(job: Job, train: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run records, under the names that the commands use."""
    data = train
    if isinstance(train, str | Path):
        data = ImageFolder(root=str(Path(train).expanduser().absolute()), image_size=arguments["image_size"])
    return {
        "seed": job.seed,
        "space": described(job.space),
        "task": plain(job.task),
        "data": plain(data) if isinstance(data, given.Family) else None,
        "augment": plain(job.data.augment),
        "runtime": described(job.runtime),
        "saving": plain(arguments["saving"]),
        "tracker": plain(arguments["tracker"]),
        **({} if arguments["teacher"] is None else {"teacher": plain(teacher_of(arguments["teacher"]))}),
    }


def plain(thing: Any) -> Any:
    """As plain data; of an object of the user's own its class alone."""
    if isinstance(thing, Mapping):
        return {str(name): plain(value) for name, value in thing.items()}
    try:
        return described(thing)
    except ConfigError:
        return {NAME: import_path(thing if callable_itself(thing) else type(thing))}


@contextlib.contextmanager
def opened_records(job: Job, settings: dict[str, Any], arguments: Mapping[str, Any]) -> Iterator[Records]:
    """A context in which a stage runs: its run directory is open, if it has one."""
    records = Records(settings=settings, progress=job.progress, hooks=tuple(arguments["hooks"]))
    known = survey.facts(job.data, compared=False)  # as there is no test split
    if job.progress:
        for line in survey.lines(known):
            print(line)
    if distributed.first():
        for text in survey.warnings(known):
            print(f"warning: {text}", file=sys.stderr)
    path, resumes = directory_of(arguments["directory"], arguments["resume"])
    if path is None:
        yield records
        return
    saving, text = arguments["saving"], yaml.safe_dump(settings, sort_keys=False, allow_unicode=False, width=120)
    complete(saving, path=Path(), kind="search")  # only tried: a mistake in it is to leave no directory
    check_installed(arguments["tracker"])
    out = RunDirectory(
        path,
        config=text,
        command=command_line(),
        seed=job.seed,
        runtime=job.runtime,
        resume=resumes,
        writes=distributed.first(),
    )
    with out, opened_tracker(arguments["tracker"], path) if out.writes else Silent() as tracker:
        out.record(data=known, made_in="Python")
        tracker.describe(**description(settings, text=text, command=command_line(), metric=job.task.metric.name))
        yield replace(
            records,
            directory=out,
            tracker=tracker,
            saving=saving,
            may_change=settings_of(arguments["may_change"]),
            profile=job.runtime.profile,
        )


def resumed_directory(directory: Any, resume: Any) -> Path | None:
    """The directory of the run that is resumed, if one is."""
    path, resumes = directory_of(directory, resume)
    return path if resumes else None


def directory_of(directory: Any, resume: Any) -> tuple[Path | None, bool]:
    """Returns the directory of a run, and whether the run continues the one that is there."""
    if isinstance(resume, bool):
        if directory is None:
            if resume:
                raise ConfigError("resume is True without a directory", fix="give the run's directory as directory=...")
            return None, False
        path = path_of(directory, "directory")
        return path, resume and (path / MANIFEST).exists()
    path = path_of(resume, "resume")
    if directory is not None and path_of(directory, "directory") != path:
        raise ConfigError(
            f"directory is {directory} and resume is {resume}, expected one directory", fix="give resume alone"
        )
    return path, True
