"""Builds the page that compares several runs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any

from nas.drawing.canvas import kind, short
from nas.report.as_text import compact, duration, metric_name, plain, shower, shown_value
from nas.report.charts import Series, line_chart, scatter, scrolled
from nas.report.markup import Html, Section, el
from nas.report.run_files import RunFiles, number, values
from nas.settings.dotted import OWN, among, leaves

# Settings that make no other group of runs.
APART = (*OWN, "seed", "name", "experiment", "formats", "saving", "tracker")
HUES = 8  # colours of groups; more groups share the last
MOST_TILES = 40  # of groups
MOST_COLUMNS = 6  # of settings in the table of runs
MOST_SIDE_BY_SIDE = 16  # genotypes
MOST_LINES = 120  # single runs in a chart
LONGEST = 60  # characters of a value
ABSENT = "-"  # of a run without a choice, as runs of another space are


class Groups:
    """Groups runs that differ only in the seed. differing: setting -> its value in each run, as it is shown."""

    def __init__(self, runs: Sequence[RunFiles]) -> None:
        self.runs = runs
        settings = [{k: v for k, v in asked(run).items() if k and not among(k, APART)} for run in runs]
        names = list(dict.fromkeys(name for of in settings for name in of))
        columns = {name: [shown_value(of.get(name)) for of in settings] for name in names}
        whole = {name: column for name, column in columns.items() if len(set(column)) > 1}
        self.keys: list[tuple[str, ...]] = [
            tuple(column[index] for column in whole.values()) for index in range(len(runs))
        ]
        self.order = list(dict.fromkeys(self.keys))
        self.telling = telling(whole, len(self.order))
        self.differing = {name: [short(value, LONGEST) for value in column] for name, column in whole.items()}

    def label(self, index: int) -> str:
        """Returns the label of a run's group."""
        shown = [self.differing[name][index] for name in self.telling]
        return ", ".join(shown) or "all runs"

    def colour(self, index: int) -> str:
        return f"k{min(self.order.index(self.keys[index]), HUES - 1)}"

    def members(self) -> Iterator[tuple[str, str, list[RunFiles]]]:
        """Returns (label, colour, runs) of each group."""
        for key in self.order:
            of = [index for index, one in enumerate(self.keys) if one == key]
            yield self.label(of[0]), self.colour(of[0]), [self.runs[index] for index in of]


def asked(run: RunFiles) -> dict[str, Any]:
    """Returns the settings of a run. A retraining in Python records the genotype that it was given beside them."""
    given = {} if run.config.keys() & {"search", "genotype"} else {"genotype": run.choices}
    return leaves(run.config) | given


def telling(differing: dict[str, list[str]], groups: int) -> list[str]:
    """Returns a few settings that tell the groups apart: first groups of options, then numbers."""
    names = sorted(differing, key=lambda name: (not name.endswith("_name_"), name.count(".")))
    chosen: list[str] = []
    for name in names:
        before = len(set(zip(*(differing[one] for one in chosen), strict=True))) if chosen else 1
        after = len(set(zip(*(differing[one] for one in [*chosen, name]), strict=True)))
        if after > before:
            chosen.append(name)
        if after == groups:
            break
    return chosen


def telling_metric(runs: Sequence[RunFiles]) -> RunFiles:
    """Returns a run that says by which metric it is scored, if one does. A run that was killed early does not."""
    return next((run for run in runs if run.score is not None), next((run for run in runs if run.lines), runs[0]))


def sections(runs: Sequence[RunFiles]) -> Iterator[Section]:
    groups = Groups(runs)
    yield "runs", "All runs", el("div", summary(groups), table(groups))
    for name, heading, content in (
        ("curves", "Curves", curves(groups)),
        ("size", "Score against size and speed", sizes(groups)),
        ("genotypes", "Derived architectures", genotypes(groups)),
        ("settings", "Which settings differ", settings(groups)),
    ):
        if content:
            yield name, heading, content


def summary(groups: Groups) -> Html | None:
    """Returns a table with a row for each group: mean and standard deviation over its runs."""
    rows = []
    for label, colour, runs in groups.members():
        scores = [run.score for run in runs if run.score is not None]
        if not scores:
            continue
        show, name = shower(telling_metric(runs)), metric_name(telling_metric(runs))
        spread = f"\N{PLUS-MINUS SIGN} {show(stdev(scores))}" if len(scores) > 1 else ""
        rows.append(
            el(
                "div", el("dt", el("span", class_=f"key {colour}"), label), el("dd", show(fmean(scores))),
                el("p", f"{spread} test {name}, {len(scores)} run{'s' * (len(scores) > 1)}"),
                class_="tile",
            )
        )  # fmt: skip
    left = f"{len(rows) - MOST_TILES} more groups are not shown: give fewer runs." if len(rows) > MOST_TILES else None
    tiles = el("dl", rows[:MOST_TILES], class_="tiles")
    return el("div", tiles, el("p", left, class_="note") if left else None) if rows else None


def table(groups: Groups) -> Html:
    columns = groups.telling[:MOST_COLUMNS]
    several = len({metric_name(run) for run in groups.runs if run.score is not None}) > 1
    score = "score" if several else metric_name(telling_metric(groups.runs))
    measures = (f"test {score}", "parameters", "MACs", "latency, ms", "time")
    names = [("run", ""), (measures[0], "n"), *((one.replace("._name_", ""), "") for one in columns), ("seed", "n")]
    head = [
        el("th", el("button", name, type="button"), scope="col", class_=kind_ or None)
        for name, kind_ in (*names, *((one, "n") for one in measures[1:]), ("state", ""))
    ]
    rows = []
    for index, run in enumerate(groups.runs):
        show = shower(run)
        cells = [
            el("th", el("span", class_=f"key {groups.colour(index)}"), run.name, scope="row", title=str(run.path)),
            figure(run.score, show, f" {metric_name(run)}" if several else ""),
            *(el("td", groups.differing[one][index]) for one in columns),
            figure(number(run.manifest.get("seed")), lambda value: f"{value:.0f}"),
            figure(number(run.result.get("parameters")), compact),
            figure(number(run.result.get("macs")), compact),
            figure(run.one_latency, lambda value: f"{value:.3g}"),
            figure(run.seconds, duration),
            el("td", run.status[0]),
        ]
        rows.append(el("tr", cells))
    caption = "Runs; the buttons in the headings sort them"
    body = el("table", el("caption", caption), el("thead", el("tr", head)), el("tbody", rows), class_="sortable")
    return scrolled(body, "Runs")


def figure(value: float | None, show: Any, unit: str = "") -> Html:
    if value is None:
        return el("td", "-", class_="n")
    return el("td", show(value) + unit, class_="n", data_value=repr(value))


def curves(groups: Groups) -> Html | None:
    run = telling_metric(groups.runs)
    show, name = shower(run), run.metric[0]
    asked = [
        (f"Search: {metric_name(run)} of the architecture's split", "search", f"arch/{name}", show),
        ("Search: loss of the architecture", "search", "arch/loss", plain),
        ("Entropy of the choices, mean", "search", "entropy/mean", plain),
        (f"Retraining: {metric_name(run)} on training batches", "retrain", f"weights/{name}", show),
    ]
    drawn = [line_chart(title, overlaid(groups, stage, metric), show=form) for title, stage, metric, form in asked]
    charts = [one for one in drawn if one is not None]
    said_ = "Strong lines are means over the runs of a group; the band is one standard deviation; thin lines are runs."
    return el("div", el("p", said_, class_="note"), el("div", charts, class_="grid")) if charts else None


def overlaid(groups: Groups, stage: str, metric: str) -> list[Series]:
    """Returns a chart with a thin line for each run, and for each group of several runs a mean line with a band."""
    thin, strong = [], []
    for label, colour, runs in groups.members():
        lines = [points for run in runs if (points := values(run.lines.get(stage, []), metric))]
        if len(lines) == 1:
            strong.append(Series(label, lines[0], colour))
            continue
        thin += [Series(label, points, colour, thin=True) for points in lines]
        by_epoch: dict[float, list[float]] = {}
        for points in lines:
            for epoch, value in points:
                by_epoch.setdefault(epoch, []).append(value)
        # Of all runs that have reached the epoch: of other runs at each epoch, the mean would jump.
        reached = {epoch: sum(one[0][0] <= epoch <= one[-1][0] for one in lines) for epoch in by_epoch}
        shared = {epoch: of for epoch, of in sorted(by_epoch.items()) if len(of) == reached[epoch] > 1}
        means = [(epoch, fmean(of)) for epoch, of in shared.items()]
        band = [(epoch, fmean(of) - stdev(of), fmean(of) + stdev(of)) for epoch, of in shared.items()]
        strong.append(Series(label, means, colour, band=band))
    return [*thin[:MOST_LINES], *strong]


def sizes(groups: Groups) -> Html | None:
    run = telling_metric(groups.runs)
    drawn = []
    for label, show_x, of in (
        ("parameters", compact, lambda one: number(one.result.get("parameters"))),
        ("multiply-accumulates", compact, lambda one: number(one.result.get("macs"))),
        ("latency, ms", plain, lambda one: one.one_latency),
    ):
        points = [
            (x, one.score, one.name, groups.colour(index))
            for index, one in enumerate(groups.runs)
            if one.score is not None and one.metric[0] == run.metric[0] and (x := of(one)) is not None
        ]
        drawn.append(
            scatter(
                f"Test {metric_name(run)} against {label}", points,
                show=shower(run), show_x=show_x, x_label=label, higher_is_better=run.metric[1],
            )
        )  # fmt: skip
    charts = [one for one in drawn if one is not None]
    said_ = "The line joins the Pareto front: runs that no other run beats in both."
    return el("div", el("p", said_, class_="note"), el("div", charts, class_="grid")) if charts else None


def genotypes(groups: Groups) -> Html | None:
    """Shows genotypes side by side if there are few, and for each choice how many runs agree."""
    runs = [(index, run) for index, run in enumerate(groups.runs) if run.choices]
    if len(runs) < 2:
        return None
    keys = list(dict.fromkeys(key for _, run in runs for key in run.choices))
    few = len(runs) <= MOST_SIDE_BY_SIDE
    rows, same = [], 0
    for key in keys:
        names = [run.choices.get(key, ABSENT) for _, run in runs]
        (leading, count), *_ = Counter(name for name in names if name != ABSENT).most_common(1)
        same += count == len(names)
        if few:
            cells = [operation(name, agrees=name == leading) for name in names]
        else:
            most = Counter(names).most_common(4)
            cells = [
                el("td", [el("span", f"{name or 'dropped'} {n}", class_=f"op {kind_of(name)}") for name, n in most])
            ]
        agree = el("td", f"{count} of {len(names)}", class_="n" + (" all" if count == len(names) else ""))
        rows.append(el("tr", el("th", key, scope="row"), agree, cells))
    heads = [el("th", el("span", class_=f"key {groups.colour(i)}"), run.name, scope="col") for i, run in runs]
    head = el("tr", el("th", "choice", scope="col"), el("th", "agree", scope="col", class_="n"),
              heads if few else el("th", "derived, and in how many runs", scope="col"))  # fmt: skip
    note = f"{same} of {len(keys)} choices are the same in all {len(runs)} runs."
    body = el("table", el("thead", head), el("tbody", rows), class_="genotypes")
    return el("div", el("p", note, class_="note"), scrolled(body, "Derived architectures"))


def kind_of(name: str | None) -> str:
    return "none" if name in (None, ABSENT) else f"op-{kind(name)}"


def operation(name: str | None, *, agrees: bool) -> Html:
    return el("td", el("span", name or "dropped", class_=f"op {kind_of(name)}"), class_=None if agrees else "differs")


def settings(groups: Groups) -> Html | None:
    if not groups.differing:
        return el("p", "None but the seed, or no run recorded its settings.", class_="note")
    members = list(groups.members())
    indices = [groups.keys.index(key) for key in groups.order]
    if len(members) > MOST_SIDE_BY_SIDE:
        rows = [
            el("tr", el("th", name.replace("._name_", ""), scope="row"), el("td", ", ".join(values_of(column))))
            for name, column in groups.differing.items()
        ]
        head = el("tr", [el("th", one, scope="col") for one in ("setting", "values, and in how many runs")])
    else:
        rows = [
            el("tr", el("th", name.replace("._name_", ""), scope="row"), [el("td", column[index]) for index in indices])
            for name, column in groups.differing.items()
        ]
        heads = [el("th", el("span", class_=f"key {colour}"), label, scope="col") for label, colour, _ in members]
        head = el("tr", el("th", "setting", scope="col"), heads)
    return scrolled(el("table", el("thead", head), el("tbody", rows), class_="settings"), "Which settings differ")


def values_of(column: Sequence[str]) -> list[str]:
    found = Counter(column).most_common(12)
    return [f"{value} ({count})" for value, count in found]


def states(runs: Sequence[RunFiles]) -> str:
    """Returns how many runs are in each state."""
    found = Counter(run.status[0] for run in runs)
    return ", ".join(f"{count} {state}" for state, count in found.most_common())
