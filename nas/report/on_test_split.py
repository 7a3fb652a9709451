"""The score of a run on the test split: its classes, confusions, calibration and worst mistakes."""

from collections.abc import Mapping
from typing import Any

from nas.report.as_text import metric_name, percent, plain, shower
from nas.report.charts import calibration_chart, scrolled
from nas.report.markup import Html, el, tile
from nas.report.run_files import RunFiles, items, mapping, number, text

LARGEST_MATRIX = 24  # classes of a table of confusions
MOST_CLASSES = 40  # whose accuracies are all shown
MOST_PAIRS = 15  # of classes that are taken for each other
FACTS = (
    ("balanced_accuracy", "balanced accuracy", percent),
    ("top5_accuracy", "top-5 accuracy", percent),
    ("loss", "loss", plain),
    ("negative_log_likelihood", "negative log-likelihood", plain),
    ("expected_calibration_error", "expected calibration error", plain),
    ("root_mean_squared_error", "root mean squared error", plain),
    ("r_squared", "R squared", plain),
)


def on_test_split(run: RunFiles) -> Html | None:
    result, parts = run.result, []
    if run.score is None:
        return None
    classes = {name: mapping(of) for name, of in mapping(result.get("test_per_class")).items()}
    confusion = {name: mapping(of) for name, of in mapping(result.get("test_confusion")).items()}
    facts = [
        (f"test {metric_name(run)}", shower(run)(run.score)),
        *(
            (label, form(value))
            for key, label, form in FACTS
            if (value := number(result.get(f"test_{key}"))) is not None
        ),
        ("examples", f"{number(result.get('test_examples')) or 0:,.0f}"),
    ]
    parts.append(el("dl", [tile(label, value) for label, value in facts], class_="tiles small"))
    side = []
    if classes:
        side.append(per_class(classes))
    if confusion:
        side.append(matrix(confusion) if len(confusion) <= LARGEST_MATRIX else pairs(confusion))
    bins = [
        (int(one[0]), one[1], one[2])
        for one in map(items, items(result.get("test_calibration")))
        if len(one) == 3 and all(number(of) is not None for of in one) and one[0] >= 1
    ]
    if bins:
        side.append(calibration_chart(bins))
    parts.append(el("div", side, class_="grid wide"))
    pictures = [one for one in run.mistakes if is_png(one.get("png"))]
    if pictures:
        parts += [
            el("h3", "Worst mistakes"),
            el("p", "The wrong answers that the network was most sure of.", class_="note"),
            el("ul", [mistake(one) for one in pictures], class_="mistakes"),
        ]
    return el("div", parts)


def is_png(value: object) -> bool:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
    return (
        isinstance(value, str) and value.startswith("iVBOR") and len(value) < 100_000 and not set(value) - set(letters)
    )


def mistake(one: Mapping[str, Any]) -> Html:
    true, predicted, sure = text(one.get("true")), text(one.get("predicted")), number(one.get("confidence"))
    said = f"{true}, taken for {predicted}"
    return el(
        "li",
        el("img", src=f"data:image/png;base64,{one['png']}", alt=said),
        el(
            "span",
            el("b", true),
            " taken for ",
            el("b", predicted),
            f", {percent(round(sure, 3))} sure" if sure else None,
        ),
    )


def per_class(classes: Mapping[str, Mapping[str, Any]]) -> Html:
    rows = [(name, number(of.get("accuracy")), number(of.get("examples")) or 0) for name, of in classes.items()]
    heading = "Accuracy of each class"
    if len(rows) > MOST_CLASSES:
        rows = sorted((row for row in rows if row[1] is not None), key=lambda row: row[1] or 0.0)[:MOST_CLASSES]
        heading = f"Accuracy of the {len(rows)} worst of {len(classes)} classes"
    shown = [
        el(
            "tr", el("th", name, scope="row"),
            el("td", el("span", style=f"width:{100 * (accuracy or 0):.1f}%", class_="level")),
            el("td", "-" if accuracy is None else f"{100 * accuracy:.1f} %", class_="n"),
            el("td", f"{examples:,.0f}", class_="n faint"),
        )
        for name, accuracy, examples in rows
    ]  # fmt: skip
    head = el("tr", [el("th", one, scope="col") for one in ("class", "accuracy", "", "examples")])
    table = el("table", el("thead", head), el("tbody", shown), class_="classes")
    return el("figure", el("figcaption", heading), scrolled(table, heading))


def matrix(confusion: Mapping[str, Mapping[str, Any]]) -> Html:
    names = list(confusion)
    rows = []
    for name in names:
        counts = [number(confusion[name].get(other)) or 0 for other in names]
        whole = sum(counts) or 1
        cells = [
            el(
                "td", f"{count:,.0f}" if count else "", title=f"{name} taken for {other}: {count:,.0f}",
                style=f"--p:{count / whole:.3f}", class_="right" if other == name else "wrong",
            )
            for other, count in zip(names, counts, strict=True)
        ]  # fmt: skip
        rows.append(el("tr", el("th", name, scope="row"), cells))
    head = el("tr", el("td", ""), [el("th", el("span", name), scope="col") for name in names])
    table = el("table", el("thead", head), el("tbody", rows), class_="matrix")
    caption = "Confusion: a row for each true class, a column for each answer"
    return el("figure", el("figcaption", caption), scrolled(table, caption))


def pairs(confusion: Mapping[str, Mapping[str, Any]]) -> Html:
    found = sorted(
        ((number(n) or 0, true, name) for true, of in confusion.items() for name, n in of.items() if name != true),
        reverse=True,
    )[:MOST_PAIRS]
    rows = [
        el("tr", el("td", true), el("td", name), el("td", f"{count:,.0f}", class_="n")) for count, true, name in found
    ]
    head = el("tr", [el("th", one, scope="col") for one in ("class", "taken for", "how often")])
    caption = f"The most frequent confusions of {len(confusion)} classes"
    table = el("table", el("thead", head), el("tbody", rows))
    return el("figure", el("figcaption", caption), scrolled(table, caption))
