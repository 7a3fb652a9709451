"""nas-study: runs methods x seeds from one YAML file, on any engine, with baselines, statistics and a table of all
runs.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas.cli import output, paths, sweep
from nas.cli.command import explain_lost, launched, stoppable
from nas.cli.exits import USER_ERROR, fail, shown_anywhere
from nas.cli.mistakes import explain
from nas.cli.study_supernet import SUPERNET, supernet_agreement
from nas.cli.task import Task, register
from nas.errors import ConfigError, NasError
from nas.storage import atomic
from nas.studies.collected import Run
from nas.studies.plan import Plan, differences, directory_of, meaning, read

BEGUN = "begun.json"  # what the study is, and of which code, since its first job
REPORT = "study.json"
# Of Hydra's settings, those that a study makes itself.
OWN = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra/sweeper")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="nas-study",
        description="Run the methods of a study with every seed, and report on every run. The same command again goes "
        "on with a study that was interrupted.",
    )
    parser.add_argument("study", type=Path, help="a YAML file, see scripts/README.md")
    parser.add_argument(
        "--out", type=directory_named, help="the study's directory (default: its name, in $NAS_RUNS or runs)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="repeat the jobs that have failed")
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="run nothing: write the report again, of what has finished, and also if the jobs are of another commit",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "engine", nargs="*", default=[], help="launcher, e.g. hydra/launcher=joblib hydra.launcher.n_jobs=2"
    )
    given = parser.parse_intermixed_args()
    shown_anywhere()
    register()
    try:
        plan, plain = read(given.study)
        plan = as_on_command_line(replace(plan, engine=tuple(given.engine) or plan.engine))
        refuse_other_settings(plan.engine)
        directory = (given.out or output.base([]) / plan.name).absolute()
        if given.report_only:
            refuse_nothing_there(directory)
        with held(directory):
            code = begin(directory, plain, any_commit=given.report_only)
            if given.report_only:
                write_report(plan, directory, baselines_of(plan), code)
            else:
                run(plan, directory, given, code)
    except NasError as error:
        if given.debug:
            raise
        fail(str(error), USER_ERROR)
    except OSError as error:
        if given.debug or error.filename is None:
            raise
        fail(explain_lost(error), USER_ERROR)


def directory_named(text: str) -> Path:
    """Returns the path of the option --out. An empty one would be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("is empty, expected a directory")
    return Path(text).expanduser()


def as_on_command_line(plan: Plan) -> Plan:
    """Returns the plan with every ~ expanded. Raises ConfigError for an empty path, as the other commands do."""

    def words(of: Sequence[str]) -> tuple[str, ...]:
        return tuple(paths.read(of))

    table, again = plan.benchmark, plan.retrain
    return replace(
        plan,
        common=words(plan.common),
        methods={name: words(of) for name, of in plan.methods.items()},
        retrain=again and replace(again, settings=words(again.settings)),
        benchmark=table and replace(table, table=os.path.expanduser(table.table)),
        engine=words(plan.engine),
    )


def refuse_other_settings(engine: Sequence[str]) -> None:
    """Raises ConfigError for a setting that is none of where and how jobs run."""
    for word in engine:
        name = word.lstrip("+~").partition("=")[0]
        own = name.startswith(OWN)
        if own or not name.startswith(("hydra/", "hydra.", "runtime.")):
            raise ConfigError(
                f"{word} is no setting of an engine, expected hydra/launcher=..., hydra.launcher.... or runtime....",
                fix="leave it out: a study has --out, and no sweeper"
                if own
                else "put settings of the jobs into the study, under common or methods",
            )


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """A context that holds a study. Raises OutputError if another process holds it."""
    from nas.storage.run_directory import locked

    descriptor = locked(directory, setting="--out")
    try:
        yield
    finally:
        os.close(descriptor)


def refuse_nothing_there(directory: Path) -> None:
    if not any(directory.rglob(sweep.RECORD)):
        raise ConfigError(
            f"{directory} holds no job of a study, so there is nothing to report on", fix="leave out --report-only"
        )


def begin(directory: Path, plain: dict[str, Any], *, any_commit: bool) -> str | None:
    """Records what a new study is, and returns the commit of its jobs.

    Where and how jobs run may change, the notes, and how the file writes it all. Raises ConfigError if the directory
    holds a study with other settings, or one of another commit unless `any_commit`.
    """
    from nas.storage.run_directory import commit
    from nas.untrusted.plain_data import dict_in

    code = commit()
    before = dict_in(directory / BEGUN)
    if not any(directory.rglob(sweep.RECORD)):  # no job has begun
        atomic.write_json(directory / BEGUN, {"study": plain, "commit": code})
        return code
    try:
        old, commit_before = meaning(before["study"]), before["commit"]
    except (KeyError, AttributeError, ConfigError) as error:
        raise ConfigError(
            f"{directory / BEGUN} is damaged, so nothing tells which study has begun there", fix="give another --out"
        ) from error
    if changed := differences(old, meaning(plain)):
        raise ConfigError(
            f"the study in {directory} was begun with other settings: {', '.join(changed[:5])}",
            fix="undo the change, or give another --out",
        )
    if commit_before != code and not any_commit:
        raise ConfigError(
            f"the study in {directory} was begun with the code of commit {commit_before}, got {code}",
            fix="check that commit out, give another --out, or write the report alone with --report-only",
        )
    return commit_before


def baselines_of(plan: Plan) -> Any:
    """Returns the baselines of the study's table; None without one. Raises an error if scipy is missing."""
    from nas.studies import statistics
    from nas.studies.baselines import Baselines

    statistics.stats()  # found to be missing now, not after the jobs
    return None if plan.benchmark is None else Baselines(plan.benchmark, seeds=plan.seeds)


def run(plan: Plan, directory: Path, given: argparse.Namespace, code: str | None) -> None:
    """Runs all jobs that are not done, and writes the report. Exits with 2 if a job has not finished."""
    from nas.cli import search
    from nas.cli.run import run as run_body

    baselines = baselines_of(plan)
    engine = [*plan.engine, f"++retry_failed={str(given.retry_failed).lower()}"]
    task = Task(
        plan.command, run_body if plan.command == "run" else search.run, shared=True, debug=given.debug, base=directory
    )
    if plan.retrain is not None and not any(directory.rglob(sweep.RECORD)):
        compose_retraining(plan, engine)
    sys.argv[1:] = engine  # by which signals are passed on, see parallel
    jobs = [[*settings, f"hydra.sweep.subdir='{directory_of(method, seed)}'"] for method, seed, settings in plan.jobs()]

    def launch() -> None:
        launch_jobs(task, [*plan.of_all(), *engine], jobs, directory, first=0, by_supernet=plan.scored_by_supernet)
        if plan.retrain is not None:
            launch_retraining(plan, directory, engine, given)
        write_report(plan, directory, baselines, code)

    launched(launch, task, again=("The same command", "--retry-failed"))


def launch_retraining(plan: Plan, directory: Path, engine: Sequence[str], given: argparse.Namespace) -> None:
    """Retrains what every finished search derived, with every retraining seed."""
    from nas.cli import retrain
    from nas.storage.command_line import hydra_value

    assert plan.retrain is not None
    jobs = []
    for method, seed, settings in plan.jobs():
        genotype = directory / directory_of(method, seed) / "genotype.json"
        if sweep.record_of(genotype.with_name(sweep.RECORD)) is None or not genotype.is_file():
            continue
        if (sweep.record_of(genotype.with_name(sweep.RECORD)) or {}).get("status") != "finished":
            continue
        for own in plan.retrain.seeds:
            place = directory_of(method, seed, own)
            chosen = [*settings[:-1], *plan.retrain.settings, f"seed={own}", f"genotype={hydra_value(str(genotype))}"]
            jobs.append([*chosen, f"hydra.sweep.subdir='{place}'"])
    if jobs:
        task = Task("retrain", retrain.run, shared=True, debug=given.debug, base=directory)
        first = len(plan.methods) * len(plan.seeds)
        launch_jobs(task, [*plan.of_all(), *engine], jobs, directory, first=first)


def launch_jobs(
    task: Task, common: Sequence[str], jobs: Sequence[Sequence[str]], home: Path, *, first: int,
    by_supernet: bool = False,
) -> None:  # fmt: skip
    """Gives jobs to Hydra's launcher, each as the settings in which it differs. first: the number of the first job.

    by_supernet: see `compose_all`. Raises what has ended a job without a record of it: a signal, or a full disk.
    """
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import HydraContext, RunMode
    from omegaconf.errors import OmegaConfBaseException

    from nas.settings import configuration
    from nas.storage.command_line import hydra_value

    own, jobs = jobs, [[*common, *job] for job in jobs]
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory()), job_name="nas-study"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            config = hydra.compose_config(
                config_name=task.config_name,
                overrides=[*common, "hydra.mode=MULTIRUN", f"hydra.sweep.dir={hydra_value(str(home))}"],
                run_mode=RunMode.MULTIRUN,
                with_log_configuration=False,
            )
            varied = {setting.partition("=")[0].lstrip("+~") for job in own for setting in job}
            sweep.begin(config, varied=varied)
            if not any(home.rglob(sweep.RECORD)):
                compose_all(hydra, config, jobs, by_supernet=by_supernet)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(explain(error, task.config_name), fix="correct the study") from error
        launcher = Plugins.instance().instantiate_launcher(
            config=config,
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks()),
            task_function=stoppable(task),
        )
        for ended in launcher.launch(jobs, initial_job_idx=first):
            if isinstance(raised := ended._return_value, Exception):  # return_value would print a line of Hydra's
                raise raised


def compose_all(hydra: Any, config: Any, jobs: Sequence[Sequence[str]], *, by_supernet: bool) -> None:
    """Composes the configuration of one job of each method. So a mistake is found before the first job begins.

    by_supernet: whether the methods are compared by scores inside their supernets, which each has to measure.
    """
    seen = set()
    for job in jobs:
        settings = tuple(job[:-2])  # without seed and directory
        if settings not in seen:
            seen.add(settings)
            of_job = hydra.config_loader.load_sweep_config(config, list(job))
            if by_supernet and not of_job.search.gap_batches:
                raise ConfigError(
                    "without benchmark and retrain, methods are compared by scores inside their supernets, got "
                    f"search.gap_batches=0 for {' '.join(job[:-1])}, which measures none",
                    fix="set search.gap_batches=4 under common, or add a benchmark or retrain",
                )


def compose_retraining(plan: Plan, engine: Sequence[str]) -> None:
    """Composes the configuration of one retraining of each method, so that a mistake is found before the searches.

    engine: may say where more configurations are. Raises ConfigError for a mistake.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from nas.cli.stages.retrain import options
    from nas.settings import configuration

    assert plan.retrain is not None
    common = [*(word for word in engine if word.startswith("hydra.searchpath=")), *plan.of_all()]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
            for settings in plan.methods.values():
                options(compose("retrain", [*common, *settings, *plan.retrain.settings, "genotype=DARTS_V2"]).retrain)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"retrain: {explain(error, 'retrain')}", fix="correct the study") from error


def write_report(plan: Plan, directory: Path, baselines: Any, code: str | None) -> None:
    """Writes the report of all jobs that have finished. code: the commit of the jobs."""
    from nas.settings.configuration import read_yaml, to_plain
    from nas.storage.run_directory import commit
    from nas.studies.as_markdown import markdown
    from nas.studies.as_page import study_page
    from nas.studies.collected import collect
    from nas.studies.report import report

    table = None if baselines is None else baselines.table
    runs = collect(plan, directory, record=sweep.RECORD, table=table)
    configs, agreement = [], {}
    for run in runs:
        with left_out_if_lost(run):
            if run.manifest:
                configs.append(to_plain(read_yaml(run.directory / "config.yaml")))
            # Measured by the code that has trained it.
            own = commit() == code or (run.directory / SUPERNET).is_file()
            if plan.supernet is not None and run.status == "finished" and own:
                agreement[f"{run.method}, seed {run.seed}"] = supernet_agreement(plan, run, baselines)
    known = report(plan, runs, configs, home=directory, baselines=baselines, agreement=agreement, commit=code)
    if commit() != code:
        known["reported_by"] = commit()
    atomic.write_json(directory / REPORT, known)
    text = markdown(known)
    atomic.write_text(directory / "study.md", text)
    atomic.write_text(directory / "study.html", study_page(known))
    print(f"\n{text}\nThe study is in {directory}: {REPORT}, study.md, study.html")


@contextmanager
def left_out_if_lost(run: Run) -> Iterator[None]:
    """A context that names what a run has lost. The report of the others is made without it."""
    try:
        yield
    except NasError as error:
        print(f"warning: {run.method}, seed {run.seed}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
