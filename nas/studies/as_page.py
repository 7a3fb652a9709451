"""Writes the report of a study as one HTML file, with pictures of every run and of the progress of the searches."""

from collections.abc import Mapping
from typing import Any

from nas.report.charts import Series, line_chart, scrolled
from nas.report.markup import Html, Section, el
from nas.report.page import page
from nas.report.strips import Strip, strips
from nas.studies.parts import Grid, about, number, parts

HUES = 8  # colours; more methods share the last


def study_page(known: Mapping[str, Any]) -> str:
    """Returns the page. known: see `nas.studies.report.report`."""
    pictures = {"Methods": runs_of_methods(known), "By epoch": progress(known)}
    sections: list[Section] = []
    for part in parts(known):
        content = [
            scrolled(table(one), part.heading) if isinstance(one, Grid) else el("p", one) for one in part.content
        ]
        anchor = part.heading.lower().replace(" ", "-")
        sections.append((anchor, part.heading, el("div", pictures.get(part.heading), content)))
    heading = [el("h1", str(known["name"])), el("p", about(known))]
    return page(str(known["name"]), heading, [], sections, "the study")


def table(grid: Grid) -> Html:
    head = el("tr", [el("th", heading, scope="col") for heading in grid.headings])
    body = [el("tr", el("th", row[0], scope="row"), [el("td", cell) for cell in row[1:]]) for row in grid.rows]
    return el("table", el("thead", head), el("tbody", body), class_="settings")


def colours(known: Mapping[str, Any]) -> dict[str, str]:
    names = [*known["curves"], *known["methods"]]
    return {name: f"k{min(place, HUES - 1)}" for place, name in enumerate(dict.fromkeys(names))}


def runs_of_methods(known: Mapping[str, Any]) -> Html | None:
    """Returns a dot for each run, and the mean of each method with its interval."""
    of = colours(known)
    values: dict[str, list[tuple[float, str]]] = {name: [] for name in known["methods"]}
    for run in known["runs"]:
        if run["value"] is not None:
            values[run["method"]].append((run["value"], f"seed {run['seed']}"))
    rows = [
        Strip(name, values[name], described["mean"], described.get("interval"), of[name])
        for name, described in known["methods"].items()
    ]
    return strips("Every run; the line is the mean, the bar its 95 % interval", rows, show=number)


def progress(known: Mapping[str, Any]) -> Html | None:
    """Returns what was derived after each epoch, against the epoch and against the device's time."""
    of = colours(known)
    by_epoch: list[Series] = []
    by_time: list[Series] = []
    for name, rows in known["curves"].items():
        if not rows:
            continue
        # Of an epoch: runs that were stopped have fewer epochs, and took less time.
        minutes = 60 * known["costs"][name]["search"] / sum(row["n"] for row in rows)
        for series, scale in ((by_epoch, 1.0), (by_time, minutes)):
            points = [(scale * row["epoch"], row["mean"]) for row in rows]
            band = [(scale * row["epoch"], min(row["values"]), max(row["values"])) for row in rows]
            series.append(Series(name, points, of[name], band=band))
    charts = [
        line_chart("What was derived, by epoch: mean, lowest and highest", by_epoch, show=number),
        line_chart("The same, by minutes of the device", by_time, show=number, x_label="minutes"),
    ]
    shown = [chart for chart in charts if chart is not None]
    return el("div", shown, class_="grid") if shown else None
