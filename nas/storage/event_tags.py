"""Chooses the metrics that TensorBoard shows, and their tags: grouped by purpose, at most one card per choice."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

MOST_CHOICES = 30  # that get cards; with more choices there are only pictures and histograms
OWN_GROUPS = ("gap", "collapse")  # metrics of the search that TensorBoard shows as separate groups
Probabilities = dict[str, dict[str, float]]


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yields (tag, value) for the cards.

    A choice gets one card, ``arch/<choice>``: the probability of its leading operation. Only the mean of the entropies
    gets a card; `histograms` has all entropies.
    """
    stage = line["stage"]
    for name, value in line.items():
        group = name.partition("/")[0]
        if name in ("stage", "epoch") or (stage == "search" and group in ("probability", "share")):
            continue
        if stage == "search" and name == "entropy/mean":
            yield "search/entropy", value
        elif stage == "search" and group == "entropy":
            continue
        elif stage == "search" and group in OWN_GROUPS:
            yield name, value
        else:
            yield f"{stage}/{name}", value
    found = probabilities(line)
    if len(found) <= MOST_CHOICES:
        for key, of in found.items():
            yield f"arch/{key}", max(of.values())


def probabilities(line: Mapping[str, Any]) -> Probabilities:
    """Returns choice key -> operation -> probability, from a line of the search."""
    found: Probabilities = {}
    keys = {name.removeprefix("entropy/") for name in line if name.startswith("entropy/")}
    for name, value in line.items():
        if line["stage"] == "search" and name.startswith("probability/") and value is not None:
            key, operation = parted(name.removeprefix("probability/"), keys)
            found.setdefault(key, {})[operation] = value
    return found


def parted(text: str, keys: Collection[str]) -> tuple[str, str]:
    """Returns the choice key and the operation in ``<key>/<operation>``. Both may have slashes. keys: of choices."""
    key, _, operation = last = text.rpartition("/")
    while key and key not in keys:
        key, _, before = key.rpartition("/")
        operation = f"{before}/{operation}"
    return (key, operation) if key else (last[0], last[2])


def history(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """choice key -> operation -> its probability in each of the lines of the search, NaN where none was logged."""
    found: dict[str, dict[str, list[float]]] = {}
    for index, line in enumerate(lines):
        for key, of in probabilities(line).items():
            for name, value in of.items():
                found.setdefault(key, {}).setdefault(name, [math.nan] * len(lines))[index] = value
    return found


def histograms(line: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[float]]]:
    """Yields all entropies and all probabilities of a line of the search, each with its tag."""
    of_choices = (name for name in line if name.startswith("entropy/") and name != "entropy/mean")
    entropies = [line[name] for name in of_choices if line[name] is not None]
    drawn = [value for of in probabilities(line).values() for value in of.values()]
    if line["stage"] == "search":
        yield from (
            (tag, all_)
            for tag, all_ in (("histograms/entropies", entropies), ("histograms/probabilities", drawn))
            if all_
        )


def stage(tag: str) -> str:
    """Returns the stage of the card with this tag; empty if no epoch wrote it."""
    group = tag.partition("/")[0]
    return group if group == "retrain" else "search" if group in ("search", "arch", *OWN_GROUPS) else ""


def layout(line: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """Returns charts with several curves for TensorBoard's custom scalars, from a line of the search.

    They show both levels, temperature and entropy, the gap, the collapse, and the leading probabilities of each cell.
    """
    tags = [tag for tag, _ in scalars(line)]
    cells: dict[str, list[str]] = {}
    for tag in tags:
        if tag.startswith("arch/"):
            cells.setdefault(tag.rpartition("/")[0].removeprefix("arch").lstrip("/") or "choices", []).append(tag)
    charts = {
        "search": {
            "losses of both levels": [tag for tag in tags if re.fullmatch(r"search/(weights|arch)/loss", tag)],
            "temperature and entropy": [tag for tag in tags if tag in ("search/temperature", "search/entropy")],
            "discretisation gap": [tag for tag in tags if tag.startswith("gap/")],
            "collapse": [tag for tag in tags if tag.startswith("collapse/")],
        },
        "architecture": {f"leading probabilities: {cell}": found for cell, found in cells.items()},
    }
    return {
        category: {
            title: ["Multiline", [f"^{re.escape(tag)}$" for tag in found]] for title, found in of.items() if found
        }
        for category, of in charts.items()
        if any(of.values())
    }
