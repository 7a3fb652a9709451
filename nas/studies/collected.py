"""Reads what the jobs of a study left in their directories: values, curves, costs and manifests."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.spaces.nas_bench_201_table import NasBench201Table
from nas.storage.metrics_log import read_lines
from nas.studies.plan import Plan, directory_of
from nas.supernet.genotype import Genotype
from nas.untrusted import plain_data, regular_file

SIZE_LIMIT = 10_000_000  # bytes of a result.json


@dataclass(frozen=True)
class Run:
    """One search, and the retrainings of the cell that it derived.

    status: finished, failed, or another state that the job recorded. value: the number that the study compares; None
    until there is one. curve: epoch, from 1 -> the looked-up value of the cell derived after this epoch. seconds:
    stage -> device time in seconds. retrained: retraining seed -> the score on the test split.
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
    epochs: int = 0

    @property
    def failed(self) -> str:
        return self.error or self.status


def plain(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file; {} if the file is missing or damaged."""
    try:
        found = plain_data.from_json(regular_file.read(path, limit=SIZE_LIMIT))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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
    job, result, manifest = plain(place / record), plain(place / "result.json"), plain(place / "manifest.json")
    status = str(job.get("status", "not begun"))
    lines = read_lines(place / "metrics.jsonl")[0] if (place / "metrics.jsonl").is_file() else []
    column = None if plan.benchmark is None else f"benchmark/{plan.benchmark.column}"
    curve = {
        line["epoch"] + 1: float(line[column])
        for line in lines
        if column is not None and line["stage"] == "search" and line.get(column) is not None
    }
    searched = [line for line in lines if line["stage"] == "search"]
    retrained: dict[int, float] = {}
    seconds = costs(manifest, lines)
    for one in () if plan.retrain is None else plan.retrain.seeds:
        other = directory / directory_of(method, seed, one)
        score = tested(plain(other / "result.json"))
        if score is not None:
            retrained[one] = score
        seconds["retraining"] = seconds.get("retraining", 0.0) + float(
            plain(other / "manifest.json").get("wall_seconds", 0.0)
        )
    genotype = result.get("genotype")
    value: float | None = None
    refused = str(job.get("refused", ""))
    if status != "finished" or refused:  # or it is the run of other settings
        pass
    elif plan.benchmark is not None:
        if table is not None and genotype is not None:
            value = table.look_up(Genotype.from_dict(genotype, source=str(place)))[plan.benchmark.column].accuracy
    elif plan.command == "run":
        value = tested(result)
    elif plan.retrain is None:
        value = recalibrated(result)
    elif len(retrained) == len(plan.retrain.seeds):
        value = sum(retrained.values()) / len(retrained)
    if value is not None and not math.isfinite(value):
        value = None
    return Run(
        method, seed, place, status, str(job.get("error", refused)), value, genotype, curve, seconds, retrained,
        manifest, len(searched),
    )  # fmt: skip


def tested(result: Mapping[str, Any]) -> float | None:
    name = result.get("metric", {}).get("name")
    score = result.get(f"test_{name}")
    return None if score is None else float(score)


def recalibrated(result: Mapping[str, Any]) -> float | None:
    """Returns the score of the derived operations inside the supernet; None if it was not measured."""
    score = result.get("discretisation_gap", {}).get("recalibrated")
    return None if score is None else float(score)


def costs(manifest: Mapping[str, Any], lines: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the seconds of search, retraining and selection.

    search and retraining: the time of their steps. selection: the rest of the run's time. It holds derivers,
    measurements and the start.
    """
    found = dict.fromkeys(("search", "selection", "retraining"), 0.0)
    for line in lines:
        rate = line.get("seconds_per_step")
        if isinstance(rate, int | float):
            stage = "search" if line["stage"] == "search" else "retraining"
            steps = manifest.get(f"{line['stage']}_epoch", {}).get("batches", 0)
            found[stage] += float(rate) * float(steps)
    whole = float(manifest.get("wall_seconds", 0.0))
    found["selection"] = max(0.0, whole - found["search"] - found["retraining"])
    return found


def what_is_compared(plan: Plan) -> str:
    """Says in a sentence what `Run.value` means."""
    if plan.benchmark is not None:
        return f"{plan.benchmark.column} of the derived cell, in per cent, looked up"
    if plan.command == "run" or plan.retrain is not None:
        return "score of the retrained network on the test split"
    return "score of the derived operations inside the supernet, on validation examples, norms recalibrated"
