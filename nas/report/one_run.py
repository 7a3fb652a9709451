"""Builds the page of one run. A part without data is left out, or a sentence says what is missing."""

import json
from collections.abc import Iterator, Sequence

from nas.drawing.architecture_picture import draw_architecture
from nas.drawing.timeline import draw_timeline
from nas.report.as_text import compact, duration, metric_name, shower, shown_value
from nas.report.charts import Series, heat, line_chart, picture, scrolled, waterfall
from nas.report.markup import Html, Section, el, lines, tile
from nas.report.on_test_split import on_test_split
from nas.report.run_files import RunFiles, items, mapping, number, text, values
from nas.storage.command_line import pasted
from nas.storage.event_tags import history, probabilities
from nas.storage.metrics_log import Line

MOST_HEATS = 64  # choices with a heat map of their own
STEPS = 250  # columns of a heat map
GAP = (
    ("relaxed", "relaxed", "the supernet as it is searched"),
    ("derived", "derived", "derived operations only, batch norms as the search left them"),
    ("recalibrated", "recalibrated", "derived operations only, batch norms re-estimated"),
    ("retrained_test", "retrained", "trained from scratch, on the test split"),
)


def sections(run: RunFiles) -> Iterator[Section]:
    yield "overview", "What came out", overview(run)
    for name, heading, content in (
        ("curves", "Curves", curves(run)),
        ("edges", "Which operation leads", edges(run)),
        ("gap", "From the search to the network", gap_and_collapse(run)),
        ("test", "On the test split", on_test_split(run)),
        ("settings", "Settings that differ from the defaults", settings(run)),
        ("load", "How to load the network", load(run)),
        ("manifest", "Where it came from", manifest(run)),
    ):
        if content:
            yield name, heading, content


def overview(run: RunFiles) -> Html:
    tiles = []
    show, result = shower(run), run.result
    if (score := run.score) is not None:
        ends = [end for one in items(result.get(f"test_{run.metric[0]}_interval")) if (end := number(one)) is not None]
        between = f"95 %: {show(ends[0]).removesuffix(' %')} to {show(ends[1])}" if len(ends) == 2 else ""
        tiles.append(tile(f"test {metric_name(run)}", show(score), between))
    elif found := values(run.lines.get("search", []), f"arch/{run.metric[0]}"):
        tiles.append(
            tile(f"{metric_name(run)} of the search", show(found[-1][1]), f"epoch {found[-1][0]:.0f}, no test yet")
        )
    parameters = number(result.get("parameters")) or number(result.get("derived_parameters"))
    if parameters is None and (found := values(run.lines.get("search", []), "derived_parameters")):
        parameters = found[-1][1]
    if parameters is not None:
        tiles.append(tile("parameters", compact(parameters), f"{parameters:,.0f}"))
    if (macs := number(result.get("macs"))) is not None:
        tiles.append(tile("multiply-accumulates", compact(macs), "for one example"))
    if (one := run.one_latency) is not None:
        tiles.append(tile("latency", f"{one:.3g} ms", f"one example, {text(run.manifest.get('device')).split(',')[0]}"))
    if (seconds := run.seconds) is not None:
        tiles.append(tile("time", duration(seconds), "search, retraining and all"))
    asked = el("div", el("h3", "What was asked"), description_list(asked_for(run)), class_="asked")
    choices = run.choices
    cells: Html | None = None
    if choices:
        last = run.lines.get("search", [])[-1:]
        drawn = draw_architecture(
            choices, title="derived architecture", stacked=True, probabilities=probabilities(last[0]) if last else None
        )
        cells = el(
            "div", el("h3", "What was derived"), picture(drawn, least=440), in_the_benchmark(run), class_="derived"
        )
    return el("div", el("dl", tiles, class_="tiles") if tiles else None, el("div", asked, cells, class_="hero"))


def in_the_benchmark(run: RunFiles) -> Html | None:
    """Shows the accuracy and the rank of the derived cell in each column of the benchmark's table."""
    pairs: list[tuple[str, object]] = []
    for column, found in mapping(mapping(run.result.get("benchmark")).get("columns")).items():
        accuracy, rank, of = (number(mapping(found).get(name)) for name in ("accuracy", "rank", "of"))
        if accuracy is not None:
            place = "" if rank is None or of is None else f", rank {rank:,.0f} of {of:,.0f}"
            pairs.append((text(column), f"{accuracy:.2f} %{place}"))
    return el("div", el("h3", "What the benchmark knows of it"), description_list(pairs)) if pairs else None


def description_list(pairs: Sequence[tuple[str, object]]) -> Html:
    return el("dl", [[el("dt", name), el("dd", value)] for name, value in pairs], class_="pairs")


def asked_for(run: RunFiles) -> list[tuple[str, object]]:
    config = run.config
    pairs: list[tuple[str, object]] = []
    for group in ("space", "sampler", "searcher", "deriver", "data"):
        if name := text(mapping(config.get(group)).get("_name_")) or text(mapping(config.get(group)).get("_target_")):
            pairs.append((group, name))
    if genotype := text(config.get("genotype")):
        pairs.append(("genotype", genotype))
    if not pairs and run.space:
        pairs.append(("space", run.space))
    if not config and text(run.result.get("data")):
        pairs.append(("data", text(run.result.get("data"))))
    for stage in ("search", "retrain"):
        asked, done = number(mapping(config.get(stage)).get("epochs")), run.logged.get(stage, 0)
        if asked is not None and (done or run.status[0] != "finished"):
            said = f"{done:,} epochs" if done >= asked else f"{done:,} of {asked:,.0f} epochs"
            pairs.append((stage, said))
        elif done:
            pairs.append((stage, f"{done:,} epochs"))
    recorded = run.manifest
    pairs += [
        (name, said)
        for name, said in (
            ("stopped", text(recorded.get("search_stopped"))),
            ("seed", "" if number(recorded.get("seed")) is None else str(recorded["seed"])),
            ("device", text(recorded.get("device"))),
            ("started", text(recorded.get("started")).replace("T", " ")),
        )
        if said
    ]
    if command := [one for one in items(run.manifest.get("command")) if isinstance(one, str)]:
        pairs.append(("command", el("code", pasted(command))))
    return pairs


def curves(run: RunFiles) -> Html | None:
    show, name = shower(run), run.metric[0]
    search, retrain = run.lines.get("search", []), run.lines.get("retrain", [])
    both = (("weights", "weights", "k0"), ("architecture", "arch", "k1"))
    drawn = [
        line_chart(
            "Search: losses of both levels", [Series(said, values(search, f"{of}/loss"), hue) for said, of, hue in both]
        ),
        line_chart(
            f"Search: {metric_name(run)} of both levels",
            [Series(said, values(search, f"{of}/{name}"), hue) for said, of, hue in both],
            show=show,
        ),
        line_chart("Temperature", [Series("temperature", values(search, "temperature"))]),
        line_chart("Entropy of the choices, mean", [Series("entropy", values(search, "entropy/mean"))]),
        line_chart("Retraining: loss", [Series("loss", values(retrain, "weights/loss"))]),
        line_chart(
            f"Retraining: {metric_name(run)} on training batches",
            [Series(name, values(retrain, f"weights/{name}"))],
            show=show,
        ),
    ]
    charts = [one for one in drawn if one is not None]
    if not charts:
        return None
    missing = None
    if search and not retrain:
        missing = el("p", "There was no retraining, or it has not begun.", class_="note")
    return el("div", missing, el("div", charts, class_="grid"))


def edges(run: RunFiles) -> Html | None:
    lines_ = evenly(run.lines.get("search", []))
    epochs, found = [line["epoch"] + 1 for line in lines_], history(lines_)
    if not found:
        return None
    drawn = draw_timeline(found, epochs=epochs, title="leading operation of every choice", derived=run.derived)
    if run.derived:
        said = (
            "The colour is the operation with the largest probability, as strong as that is. A mark is an epoch after "
            "which another operation was derived."
        )
    else:
        said = "The colour is the operation with the largest probability. The run did not record what was derived when."
    heats = [heat(key, list(of.items()), epochs, kept(run, key)) for key, of in list(found.items())[:MOST_HEATS]]
    more = len(found) - len(heats)
    return el(
        "div",
        el("p", said, class_="note"),
        picture(drawn, least=640),
        el("h3", "Probabilities of every choice"),
        el("p", "Darker is more probable; the frame is the derived operation.", class_="note") if run.derived else None,
        el("div", heats, class_="grid heats"),
        el("p", f"{more} more choices are not shown.", class_="note") if more > 0 else None,
    )


def evenly(found: Sequence[Line]) -> Sequence[Line]:
    """Returns at most STEPS of the lines, evenly spaced, with the first and the last."""
    if len(found) <= STEPS:
        return found
    return [found[round(index * (len(found) - 1) / (STEPS - 1))] for index in range(STEPS)]


def kept(run: RunFiles, key: str) -> list[tuple[int, str]]:
    """Returns (epoch, operation) for each change of the derived operation; the operation is "" for a dropped edge."""
    found: list[tuple[int, str]] = []
    for epoch, choices in run.derived:
        name = choices.get(key) or ""
        if not found or found[-1][1] != name:
            found.append((epoch, name))
    return found


def gap_and_collapse(run: RunFiles) -> Html | None:
    show, search = shower(run), run.lines.get("search", [])
    measured = mapping(run.result.get("discretisation_gap"))
    steps = [(name, said, value) for key, name, said in GAP if (value := number(measured.get(key))) is not None]
    if not steps:
        last = search[-1] if search else {}
        steps = [(n, said, v) for key, n, said in GAP if (v := number(last.get(f"gap/{key}"))) is not None]
    drawn = [
        waterfall(f"Discretisation gap: {metric_name(run)}", steps, show=show) if steps else None,
        line_chart(
            "The gap over the epochs",
            [Series(name, values(search, f"gap/{key}"), f"k{i}") for i, (key, name, _) in enumerate(GAP[:3])],
            show=show,
        ),
        line_chart(
            "Collapse monitor: derived operations",
            [
                Series("skips", values(search, "collapse/skips"), "k1"),
                Series("without parameters", values(search, "collapse/parameter_free"), "k0"),
            ],
        ),
    ]
    charts = [one for one in drawn if one is not None]
    stopped = text(run.manifest.get("search_stopped"))
    note = el("p", f"The search was stopped: {stopped}.", class_="note") if stopped else None
    return el("div", note, el("div", charts, class_="grid")) if charts else None


def settings(run: RunFiles) -> Html | None:
    changed = mapping(run.manifest.get("changed"))
    if not changed:
        if not run.manifest:
            return None
        said = (
            "None: the run used the defaults." if "changed" in run.manifest
            else "The run did not record them; config.yaml has all its settings."
        )  # fmt: skip
        return el("p", said, class_="note")
    rows = [
        el(
            "tr",
            el("th", name.replace("._name_", ""), scope="row"),
            el("td", el("code", shown_value(two[1]))),
            el("td", shown_value(two[0])),
        )
        for name, two in ((name, items(of)) for name, of in changed.items())
        if len(two) == 2
    ]
    head = el("tr", [el("th", one, scope="col") for one in ("setting", "this run", "nas-run alone")])
    table = el("table", el("thead", head), el("tbody", rows), class_="settings")
    return scrolled(table, "Settings that differ from the defaults")


def load(run: RunFiles) -> Html | None:
    artefacts = mapping(run.export.get("artefacts"))
    if not artefacts and run.score is None:
        return None
    whole = f"import nas\n\nnetwork = nas.load({json.dumps(str(run.path))})  # in eval mode"
    parts: list[Html | None] = [el("pre", el("code", lines(whole)), tabindex="0")]
    for name, of in ((name, mapping(of)) for name, of in artefacts.items()):
        needs = ", ".join(map(str, items(of.get("needs"))))
        parts += [
            el("h3", f"export/{name}"),
            el("p", f"{text(of.get('about'))}. Needs {needs}.", class_="note"),
            el("p", el("strong", text(of.get("warning")))) if text(of.get("warning")) else None,
            el("pre", el("code", lines(text(of.get("code")).rstrip())), tabindex="0"),
        ]
    left_out = mapping(run.export.get("left_out"))
    parts += [el("p", f"Not there: {name}, because {why}.", class_="note") for name, why in left_out.items()]
    return el("div", parts)


def manifest(run: RunFiles) -> Html | None:
    if not run.manifest:
        return None
    shown = {key: value for key, value in run.manifest.items() if key not in ("changed", "command")}
    versions = mapping(shown.pop("versions", {}))
    pairs_: list[tuple[str, object]] = [
        (
            key.replace("_", " "),
            el("code", shown_value(value)) if isinstance(value, dict | list) else shown_value(value),
        )
        for key, value in shown.items()
    ]
    pairs_.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return description_list(pairs_)
