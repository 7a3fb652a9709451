"""Reads what the jobs of a study left in their directories: values, curves, costs and manifests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.errors import GenotypeError
from nas.report.run_files import mapping, number
from nas.spaces.nas_bench_201_table import NasBench201Table
from nas.storage.metrics_log import read_lines
from nas.studies.plan import Plan, directory_of
from nas.supernet.genotype import Genotype
from nas.untrusted import regular_file
from nas.untrusted.plain_data import dict_in, from_yaml

SIZE_LIMIT = 1_000_000  # bytes of a run's config.yaml; one takes about five thousand


@dataclass
class Run:
    """One search, and the retrainings of the cell that it derived.

    status: finished, failed, or another state that the job recorded. value: the number that the study compares; None
    until there is one. curve: epoch, from 1 -> the looked-up value of the cell derived after this epoch. seconds:
    stage -> device time in seconds. retrained: retraining seed -> the score on the test split, of retrainings that have
    finished. retrainings: the manifests of all retrainings that have begun. epochs: the number of epochs in which a
    training sees as many images as the search saw in its steps. metric: name and direction of the score, see `Metric`.
    """

    method: str
    seed: int
    directory: Path
    status: str
    error: str = ""
    value: float | None = None
    genotype: dict[str, Any] | None = None
    curve: dict[int, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    retrained: dict[int, float] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    retrainings: list[dict[str, Any]] = field(default_factory=list)
    epochs: float = 0
    metric: dict[str, Any] = field(default_factory=dict)


def collect(plan: Plan, directory: Path, *, record: str, table: NasBench201Table | None) -> list[Run]:
    """Returns one `Run` for each method and seed of the plan, even if it never ran. record: the file name of a job."""
    return [
        collect_run(plan, directory, method, seed, record=record, table=table)
        for method in plan.methods
        for seed in plan.seeds
    ]


def collect_run(
    plan: Plan, directory: Path, method: str, seed: int, *, record: str, table: NasBench201Table | None
) -> Run:
    place = directory / directory_of(method, seed)
    job, result, manifest = dict_in(place / record), dict_in(place / "result.json"), dict_in(place / "manifest.json")
    lines = read_lines(place / "metrics.jsonl")[0] if (place / "metrics.jsonl").is_file() else []
    searched = [line for line in lines if line["stage"] == "search"]
    column = None if plan.benchmark is None else f"benchmark/{plan.benchmark.column}"
    run = Run(
        method,
        seed,
        place,
        status=str(job.get("status", "not begun")),
        error=str(job.get("error") or job.get("refused") or ""),
        genotype=mapping(result.get("genotype")) or None,
        curve={line["epoch"] + 1: float(line[column]) for line in searched if column and line.get(column) is not None},
        seconds=costs(manifest, lines),
        manifest=manifest,
        epochs=epochs_of_images(manifest, search_settings(place), len(searched)),
        metric=mapping(result.get("metric")),
    )
    for one in () if plan.retrain is None else plan.retrain.seeds:
        add_retraining(run, one, directory / directory_of(method, seed, one), record=record)
    if run.status != "finished":
        return run
    try:
        if not job.get("refused"):  # or it is the run of other settings
            run.value = value_of(plan, run, result, table)
    except GenotypeError as lost:
        run.error = run.error or str(lost)
    if run.value is None:
        run.error = run.error or "its result.json does not have what is compared"
    return run


def add_retraining(run: Run, seed: int, place: Path, *, record: str) -> None:
    """Adds a retraining of what the run derived: its score, its time, and its manifest. place: its directory."""
    job, result, manifest = dict_in(place / record), dict_in(place / "result.json"), dict_in(place / "manifest.json")
    run.metric = mapping(result.get("metric")) or run.metric
    run.seconds["retraining"] += number(manifest.get("wall_seconds")) or 0.0
    if manifest:
        run.retrainings.append(manifest)
    score = tested(result)
    if score is not None and job.get("status") == "finished" and not job.get("refused"):
        run.retrained[seed] = score
    elif run.status == "finished" and not run.error:
        why = job.get("error") or job.get("refused") or job.get("status", "not begun")
        run.error = f"the retraining with seed {seed} gave no score ({why})"


def value_of(plan: Plan, run: Run, result: Mapping[str, Any], table: NasBench201Table | None) -> float | None:
    """Returns what the study compares of a finished run; None if it is missing.

    Raises GenotypeError if the table does not have the derived cell.
    """
    if plan.benchmark is not None:
        if table is None or run.genotype is None:
            return None
        found = table.look_up(Genotype.from_dict(run.genotype, source=str(run.directory)))
        return found[plan.benchmark.column].accuracy
    if plan.command == "run":
        return tested(result)
    if plan.retrain is None:
        return recalibrated(result)
    complete = len(run.retrained) == len(plan.retrain.seeds)
    return sum(run.retrained.values()) / len(run.retrained) if complete else None


def search_settings(place: Path) -> dict[str, Any]:
    """Returns the settings of a run's search; {} if its configuration is lost."""
    try:
        config = from_yaml(regular_file.read(place / "config.yaml", limit=SIZE_LIMIT))
    except (OSError, ValueError):
        return {}
    return mapping(mapping(config).get("search"))


def epochs_of_images(manifest: Mapping[str, Any], search: Mapping[str, Any], epochs: int) -> float:
    """Returns how often a search of so many epochs saw all training images in its steps.

    With half of the images for the weights, and an architecture step a weight step, that is once an epoch; with
    search.one_level=true it is twice. search: its settings, which may have fewer architecture steps, see `Order`.
    """
    used = mapping(manifest.get("search_epoch"))
    examples, whole = number(used.get("examples")), number(mapping(manifest.get("data")).get("train"))
    if not examples or not whole:
        return epochs
    steps, every = (max(1, int(number(value) or 1)) for value in (used.get("batches"), search.get("arch_every")))
    warmup = int(number(search.get("warmup_epochs")) or 0)
    arch_steps = max(0, epochs * steps // every - warmup * steps // every)
    return round((epochs + arch_steps / steps) * round(2 * examples / whole, 2) / 2, 6)


def tested(result: Mapping[str, Any]) -> float | None:
    return number(result.get(f"test_{mapping(result.get('metric')).get('name')}"))


def recalibrated(result: Mapping[str, Any]) -> float | None:
    """Returns the score of the derived operations inside the supernet; None if it was not measured."""
    return number(mapping(result.get("discretisation_gap")).get("recalibrated"))


def costs(manifest: Mapping[str, Any], lines: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the seconds of search, retraining and selection.

    search and retraining: the time of their steps. selection: the rest of the run's time. It holds derivers,
    measurements and the start.
    """
    found = dict.fromkeys(("search", "selection", "retraining"), 0.0)
    for line in lines:
        rate = number(line.get("seconds_per_step"))
        if rate is not None:
            stage = "search" if line["stage"] == "search" else "retraining"
            found[stage] += rate * (number(mapping(manifest.get(f"{line['stage']}_epoch")).get("batches")) or 0.0)
    whole = number(manifest.get("wall_seconds")) or 0.0
    found["selection"] = max(0.0, whole - found["search"] - found["retraining"])
    return found


def what_is_compared(plan: Plan, runs: Sequence[Run]) -> str:
    """Says in a sentence what `Run.value` means. Names the metrics of the runs if less is better, or if they differ."""
    if plan.benchmark is not None:
        return f"{plan.benchmark.column} of the derived cell, in per cent, looked up"
    scored = [run.metric for run in runs if run.value is not None and run.metric]
    of = {str(metric.get("name")): metric.get("higher_is_better") for metric in scored}
    named = [f"{name.replace('_', ' ')}{'' if higher else ', lower is better'}" for name, higher in of.items()]
    metrics = f" ({'; '.join(named)})" if len(of) > 1 or False in of.values() else ""
    if plan.command == "run" or plan.retrain is not None:
        return f"score of the retrained network on the test split{metrics}"
    return f"score of the derived operations inside the supernet, on validation examples, norms recalibrated{metrics}"
