"""The parts of a study's report, as texts and tables, which Markdown and the page share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Of a supernet against a benchmark: the batch norms' statistics, and the correlations.
NORMS, TAUS = ("recalibrated", "as trained"), ("kendall", "spearman", "weighted_tau")


@dataclass(frozen=True)
class Grid:
    """A table."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Part:
    heading: str
    content: Sequence[str | Grid]


def parts(known: Mapping[str, Any]) -> list[Part]:
    """Returns the parts of a report, without those that are empty. known: see `nas.studies.report.report`."""
    made = (methods, differences, every_run, by_epoch, costs, supernet, checklist)
    return [part for part in (one(known) for one in made) if part is not None]


def about(known: Mapping[str, Any]) -> str:
    """Says what is compared, of which code, and which code reports."""
    other = f" This report: {known['reported_by'] or 'not from a checkout'}." if "reported_by" in known else ""
    return f"Compared: {known['compared']}. Code: {known['commit'] or 'not from a checkout'}.{other}"


def number(value: float | None, form: str | None = None) -> str:
    """Two decimals, or four for fractions, as accuracies without a benchmark are. No minus before a zero."""
    return "-" if value is None else format(value, "z" + (form or decimals(value)))


def decimals(value: float) -> str:
    """Returns the form of a number. Small ones, as errors may be, have three digits that say something."""
    return ".2f" if abs(value) >= 1 else ".4f" if abs(value) >= 0.001 or value == 0 else ".2e"


def digits(known: Mapping[str, Any]) -> str:
    """Returns the form of differences and deviations: as many digits as the means have."""
    largest = max((abs(of["mean"]) for of in known["methods"].values()), default=0.0)
    return ".4f" if largest == 1 else decimals(largest)


def methods(known: Mapping[str, Any]) -> Part:
    rows = []
    for name, of in known["methods"].items():
        low, high = of.get("interval", (None, None))
        interval = f"{number(low)} to {number(high)}" if "interval" in of else "one run has no interval"
        rows.append((name, str(of["n"]), number(of["mean"]), number(of.get("std"), digits(known)), interval))
    content: list[str | Grid] = [Grid(("method", "runs", "mean", "std", "95 % interval of the mean"), rows)]
    if "all_cells" in known:
        of = known["all_cells"]
        content.append(f"All {of['n']:,} cells: mean {number(of['mean'])}, std {number(of['std'])}.")
    if "random_search" in known:
        of = known["random_search"]
        seen = f"the images that a search sees in its steps, {of['search_epochs']:g} times all"
        content.append(
            f"Random search: the best of {of['cells']} cell{'s' * (of['cells'] > 1)} by {of['chosen_by']}, as many as "
            f"train with {seen}."
            if of["cells"]
            else f"No random search: not one cell trains for {of['chosen_by']} with {seen}."
        )
    if "drawn_cells" in known:
        drawn = [(one["name"], number(one["accuracy"]), f"{one['rank']:,}") for one in known["drawn_cells"]]
        content.append(Grid(("cell without a search", "value", "rank"), drawn))
    return Part("Methods", content)


def differences(known: Mapping[str, Any]) -> Part:
    content: list[str | Grid] = []
    if (first := known.get("primary")) is not None:
        content.append(
            f"Named beforehand: {first['one']} - {first['other']} = {number(first['difference'], digits(known))}, "
            f"p = {number(first['p'], '.5f')}{': ' + first['test'] if 'test' in first else ''}."
        )
    rows = [
        (
            f"{pair['one']} - {pair['other']}",
            number(pair["difference"], digits(known)),
            number(pair["p"], ".4f"),
            number(pair.get("p_holm"), ".4f"),
        )
        for pair in known["comparisons"]
    ]
    tested = "Permutation tests of the means, two-sided; corrected for the number of pairs by Holm's method."
    return Part("Differences", [*content, tested, Grid(("difference of means", "", "p", "p corrected"), rows)])


def every_run(known: Mapping[str, Any]) -> Part:
    rows = [
        (
            run["method"],
            str(run["seed"]),
            number(run["value"]),
            run["status"] + (f": {run['error']}" if run.get("error") else ""),
        )
        for run in known["runs"]
    ]
    return Part("Every run", [Grid(("method", "seed", "value", "ended"), rows)])


def by_epoch(known: Mapping[str, Any]) -> Part | None:
    of = {name: {row["epoch"]: row["mean"] for row in rows} for name, rows in known["curves"].items() if rows}
    if not of:
        return None
    epochs = sorted({epoch for curve in of.values() for epoch in curve})
    shown = epochs if len(epochs) <= 20 else [*epochs[:: -(-len(epochs) // 20)], epochs[-1]]
    rows = [(str(e), *(number(curve.get(e)) for curve in of.values())) for e in dict.fromkeys(shown)]
    return Part("By epoch", ["The mean over the runs of what was derived then.", Grid(("epoch", *of), rows)])


def costs(known: Mapping[str, Any]) -> Part:
    stages = ("search", "selection", "retraining", "tuning")
    rows = [(name, *(number(of[stage], ".3f") for stage in stages)) for name, of in known["costs"].items()]
    return Part("Device hours of all runs", [Grid(("method", *stages), rows)])


def supernet(known: Mapping[str, Any]) -> Part | None:
    rows = []
    for name, of in known["supernet"].items():
        for norms in NORMS:
            found = of[norms]
            precision = ", ".join(f"{number(value, '.2f')} at {k}" for k, value in found["precision_at"].items())
            taus = (number(found[one]) for one in TAUS)
            rows.append((name, norms, str(found["cells"]), *taus, precision))
    headings = ("run", "norms", "cells", "Kendall", "Spearman", "weighted tau", "precision at k")
    return Part("Supernet against benchmark", [Grid(headings, rows)]) if rows else None


def checklist(known: Mapping[str, Any]) -> Part:
    return Part("Checklist", [Grid(("group", "point", "", "why"), [tuple(row.values()) for row in known["checklist"]])])
