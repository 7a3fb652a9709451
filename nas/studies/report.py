"""Computes the report of a study, the content of ``study.json``: every run, the comparisons, and the costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas.studies import statistics
from nas.studies.baselines import Baselines
from nas.studies.checklist import checklist
from nas.studies.collected import Run, what_is_compared
from nas.studies.plan import RANDOM_CELL, Plan

HOUR = 3600


def report(
    plan: Plan, runs: Sequence[Run], configs: Sequence[Mapping[str, Any]], *, home: Path, baselines: Baselines | None,
    agreement: Mapping[str, Any], commit: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Returns the content of ``study.json``.

    home: the study's directory, which the runs' places are relative to. agreement: of each supernet with the benchmark,
    by run. commit: of the runs.
    """
    values = {m: [run.value for run in runs if run.method == m and run.value is not None] for m in plan.methods}
    values = {method: of for method, of in values.items() if of}
    known: dict[str, Any] = {"name": plan.name, "commit": commit, "compared": what_is_compared(plan, runs)}
    random: dict[str, dict[int, float]] = {}
    if baselines is not None:
        random, facts = of_table(baselines, epochs=max((run.epochs for run in runs), default=0))
        known |= facts
    values |= {name: list(of.values()) for name, of in random.items()}
    known["methods"] = {name: statistics.described(of) for name, of in values.items()}
    known["comparisons"] = statistics.compared(values)
    if plan.primary:
        known["primary"] = primary(plan.primary, known["comparisons"])
        if plan.primary[1] == RANDOM_CELL and plan.primary[0] in values and baselines is not None:
            known["primary"] |= against_random(values[plan.primary[0]], baselines.all_cells())
    known["runs"] = [as_plain(run, home) for run in runs] + [
        {"method": name, "seed": seed, "status": "looked up", "value": value}
        for name, of in random.items()
        for seed, value in of.items()
    ]
    known["curves"] = {method: curve([run for run in runs if run.method == method]) for method in plan.methods}
    known["costs"] = {method: ledger(plan, [run for run in runs if run.method == method]) for method in plan.methods}
    known["supernet"] = dict(agreement)
    known["checklist"] = checklist(plan, runs, configs, baselines=random.keys())
    return known


def of_table(baselines: Baselines, *, epochs: float) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """Returns baseline -> seed -> value, and what the report says of the table. epochs: see `Run.epochs`."""
    population = baselines.all_cells()
    random = {RANDOM_CELL: baselines.random_cells()}
    known: dict[str, Any] = {
        "all_cells": {"n": len(population), "mean": float(population.mean()), "std": float(population.std())}
    }
    cells = baselines.cells_at_cost(epochs)
    if cells is not None:
        random["random search"] = baselines.random_search(cells)
    chosen_by = baselines.benchmark.chosen_by
    if chosen_by is not None:
        known["random_search"] = {"cells": cells or 0, "chosen_by": chosen_by, "search_epochs": epochs}
    return random, known | {"drawn_cells": baselines.drawn_cells()}


def primary(names: Sequence[str], comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the primary comparison. It was named before the runs, so its p-value needs no correction."""
    for pair in comparisons:
        if {pair["one"], pair["other"]} == set(names):
            sign = 1 if pair["one"] == names[0] else -1
            return {"one": names[0], "other": names[1], "difference": sign * pair["difference"], "p": pair["p"]}
    return {"one": names[0], "other": names[1], "difference": None, "p": None}


def against_random(values: Sequence[float], population: np.ndarray) -> dict[str, Any]:
    """Compares a mean with the means of as many random cells, of which all are known, not only those of the seeds."""
    return {
        "difference": float(np.mean(values) - population.mean()),
        "p": statistics.p_of_random(values, population),
        "test": f"the mean of {len(values)} random cells of all {len(population):,} is at least as high",
    }


def as_plain(run: Run, home: Path) -> dict[str, Any]:
    return {
        "method": run.method,
        "seed": run.seed,
        "status": run.status,
        "value": run.value,
        "directory": run.directory.relative_to(home).as_posix(),
        "command": run.manifest.get("command"),
        "commit": run.manifest.get("commit"),
        "genotype": run.genotype,
        "seconds": run.seconds,
        **({"retrained": {str(seed): score for seed, score in run.retrained.items()}} if run.retrained else {}),
        **({"error": run.error} if run.error else {}),
    }


def curve(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns for each epoch the mean value of the cells derived after it, and the number of runs."""
    epochs = sorted({epoch for run in runs for epoch in run.curve})
    rows = []
    for epoch in epochs:
        values = [run.curve[epoch] for run in runs if epoch in run.curve]
        rows.append({"epoch": epoch, "n": len(values), "mean": sum(values) / len(values), "values": values})
    return rows


def ledger(plan: Plan, runs: Sequence[Run]) -> dict[str, float | None]:
    """Returns the device hours of all runs of a method. tuning: as the plan says; None if it does not."""
    stages = {
        stage: sum(run.seconds.get(stage, 0.0) for run in runs) / HOUR
        for stage in ("search", "selection", "retraining")
    }
    return {**stages, "tuning": plan.tuning.get(runs[0].method) if runs else None}
