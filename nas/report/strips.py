"""Draws single values as SVG: a row of dots for each group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nas.drawing.canvas import short
from nas.drawing.svg import number
from nas.report.as_text import plain
from nas.report.charts import RIGHT, TOP, WIDTH, dot, figure, span, ticks
from nas.report.markup import Html, el

NAMES, OUTSIDE = 118.0, 52.0  # of rows: room for a name, and for values outside of the range


@dataclass(frozen=True)
class Strip:
    """A row of a chart of single values.

    values: (value, what it belongs to). interval: of the mean; None if there is none.
    """

    name: str
    values: Sequence[tuple[float, str]]
    mean: float
    interval: Sequence[float] | None = None
    colour: str = "k0"


def strips(title: str, rows: Sequence[Strip], *, show: Callable[[float], str]) -> Html | None:
    """Returns a chart with a row of dots for each strip, its mean, and the mean's interval.

    A value far from most others stands at the edge, with its number. This keeps the other values readable.
    """
    rows = [row for row in rows if row.values]
    if not rows:
        return None
    low, high = most_of([value for row in rows for value, _ in row.values])
    every = [value for row in rows for value, _ in row.values]
    left, right = (OUTSIDE * (min(every) < low), OUTSIDE * (max(every) > high))  # room for values outside
    start, end, height = NAMES + left, WIDTH - RIGHT - right, 26.0
    bottom = TOP + height * len(rows)

    def x(value: float) -> float:
        if not low <= value <= high:
            return NAMES + 6 if value < low else WIDTH - RIGHT - 6
        return start + (value - low) / (high - low) * (end - start)

    body: list[Html] = []
    for value in ticks(low, high):
        at = number(x(value))
        body.append(el("line", x1=at, x2=at, y1=TOP, y2=number(bottom), class_="grid"))
        body.append(el("text", plain(value), x=at, y=number(bottom + 16), text_anchor="middle"))
    for place, row in enumerate(rows):
        y = TOP + height * (place + 0.5)
        body.append(el("text", short(row.name, 15), x=NAMES - 10, y=number(y), dy="0.35em", text_anchor="end"))
        if row.interval is not None:
            first, last = (x(value) for value in row.interval)
            body.append(
                el(
                    "rect", x=number(first), y=number(y - 7), width=number(max(1.0, last - first)), height=14,
                    class_=f"band {row.colour}",
                )
            )  # fmt: skip
        at = number(x(row.mean))
        said = f"{row.name}: mean {show(row.mean)}"
        body.append(el("line", el("title", said), x1=at, x2=at, y1=number(y - 8), y2=number(y + 8), class_="mean"))
        for value, of in row.values:
            body.append(dot((x(value), y), row.colour, f"{row.name}, {of}: {show(value)}"))
        below = [value for value, _ in row.values if value < low]
        above = [value for value, _ in row.values if value > high]
        for outside, at_, anchor in ((below, NAMES + 13, "start"), (above, WIDTH - RIGHT - 13, "end")):
            if outside:
                text = show(outside[0]) if len(outside) == 1 else f"{len(outside)} runs"
                body.append(el("text", text, x=number(at_), y=number(y), dy="0.35em", text_anchor=anchor))
    words = "; ".join(f"{row.name}: mean {show(row.mean)} of {len(row.values)}" for row in rows)
    return figure(title, body, words, height=bottom + 24, kind="chart strips")


def most_of(values: Sequence[float]) -> tuple[float, float]:
    """Returns the range of the values without those that are far from most."""
    ordered = sorted(values)
    quarter, middle, last = (ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    far = 4 * (last - quarter)
    if far > 0:
        ordered = [value for value in ordered if abs(value - middle) <= far]
    return span(ordered)
