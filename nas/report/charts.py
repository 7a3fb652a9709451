"""Draws charts as SVG. The page's style sheet gives the colours, so charts follow light and dark mode."""

import io
import math
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from nas.drawing.canvas import Picture, Text, short
from nas.drawing.svg import element, number
from nas.report.as_text import percent, plain
from nas.report.markup import Html, el

WIDTH, HEIGHT = 420.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 20.0, 12.0, 34.0
FRAME = (20.0, 48.0, 20.0, 20.0)  # left, top, right and bottom of a drawing's frame, which the page has itself
MOST_POINTS = 400  # of a line; more than a screen shows
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line of a chart. colour: a class of the page, ``k0`` to ``k7``. band: (x, low, high), drawn behind the line."""

    name: str
    points: Sequence[Point]
    colour: str = "k0"
    dashed: bool = False
    thin: bool = False
    band: Sequence[tuple[float, float, float]] = ()


def picture(drawn: Picture, *, least: int) -> Html:
    """Returns a drawing of `nas.drawing` in the page's colours. least: the width in pixels below which it scrolls."""
    left, top, right, bottom = FRAME
    inner = [shape for shape in drawn.shapes if not (isinstance(shape, Text) and shape.y < top)]  # not its heading
    body = Html("".join(map(element, inner)))
    wide, high = drawn.width - left - right, drawn.height - top - bottom
    svg = el(
        "svg", el("title", drawn.title), el("desc", drawn.description), body,
        viewBox=f"{left:g} {top:g} {number(wide)} {number(high)}", role="img", class_="drawing",
        style=f"min-width:{min(least, round(wide))}px;max-width:{number(wide)}px",
    )  # fmt: skip
    return scrolled(svg, drawn.title)


def scrolled(inside: Html, label: str) -> Html:
    """Wraps content that is wider than the page. It scrolls sideways, by mouse and by keyboard."""
    return el("div", inside, class_="scroll", tabindex="0", role="region", aria_label=label)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns round numbers from low to high, for an axis."""
    if not high > low:
        return [low]
    step = (high - low) / count
    if not step > sys.float_info.min:  # so close together that no round number is between them
        return [low]
    power = 10.0 ** math.floor(math.log10(step))
    step = next(power * one for one in (1, 2, 5, 10) if power * one >= step)
    first = math.ceil(low / step - 1e-9)
    return [step * index for index in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Axes:
    x: tuple[float, float]
    y: tuple[float, float]
    log_x: bool = False

    def at(self, x: float, y: float) -> Point:
        share = (self._x(x) - self._x(self.x[0])) / ((self._x(self.x[1]) - self._x(self.x[0])) or 1)
        high = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT), TOP + (1 - high) * (HEIGHT - TOP - BOTTOM)

    def _x(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log_x else value

    def drawn(
        self, x_label: str, show: Callable[[float], str], show_x: Callable[[float], str] = plain
    ) -> Iterator[Html]:
        for value in ticks(*self.y):
            y = self.at(self.x[0], value)[1]
            yield el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=number(y), y2=number(y), class_="grid")
            yield el(
                "text", show(value).replace(".00 %", " %"), x=LEFT - 8, y=number(y), dy="0.35em", text_anchor="end"
            )
        for value in self._marks():
            if x_label == "epoch" and value != round(value):
                continue
            x = self.at(value, self.y[0])[0]
            yield el("text", show_x(value), x=number(x), y=HEIGHT - BOTTOM + 16, text_anchor="middle")
        yield el("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 4, text_anchor="end", class_="label")

    def _marks(self) -> list[float]:
        low, high = self.x
        if not self.log_x:
            return ticks(low, high, 4)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if len(powers) < 4 else (1,)
        return [v for p in powers for s in steps if low * 0.999 <= (v := s * 10.0**p) <= high * 1.001]


def span(values: Sequence[float], *, margin: float = 0.05) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    return low - margin * (high - low), high + margin * (high - low)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    show: Callable[[float], str] = plain,
    x_label: str = "epoch",
    marks: Sequence[tuple[float, str]] = (),
) -> Html | None:
    """Returns a line chart; None if there is nothing to draw. marks: (x, what happened there)."""
    shown = [one for one in series if one.points]
    if not shown:
        return None
    xs = [x for one in shown for x, _ in one.points]
    ys = [y for one in shown for _, y in one.points] + [y for one in shown for _, *ends in one.band for y in ends]
    axes = Axes((min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 0.5, max(xs) + 0.5), span(ys))
    body = list(axes.drawn(x_label, show))
    for x, said in marks:
        at = number(axes.at(x, 0)[0])
        body.append(el("line", el("title", said), x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, class_="event"))
    for one in shown:
        if one.band:
            upper = [axes.at(x, high) for x, _, high in one.band]
            lower = [axes.at(x, low) for x, low, _ in one.band]
            edge = [*thinned(upper), *reversed(thinned(lower))]
            body.append(el("path", d=path(edge) + "Z", class_=f"band {one.colour}"))
    for one in shown:
        points = [axes.at(*point) for point in thinned(one.points)]
        last = one.points[-1]
        name = f"{one.name}: {show(last[1])} at {plain(last[0])}"
        kind = f"line {one.colour}" + (" dashed" if one.dashed else "") + (" thin" if one.thin else "")
        if len(points) > 1:
            body.append(el("path", el("title", name), d=path(points), class_=kind))
        if not one.thin:
            body.append(dot(points[-1], one.colour, name))
    names = [one for one in shown if not one.thin]
    words = "; ".join(f"{one.name} ends at {show(one.points[-1][1])}" for one in names[:8])
    return figure(title, body, words, legend=[(one.name, one.colour) for one in names] if len(names) > 1 else [])


def figure(
    title: str,
    body: Sequence[Html],
    words: str,
    *,
    legend: Sequence[tuple[str, str]] = (),
    height: float = HEIGHT,
    kind: str = "chart",
) -> Html:
    keys = [el("li", el("span", class_=f"key {colour}"), name) for name, colour in legend]
    svg = el(
        "svg", el("title", title), el("desc", words), *body,
        viewBox=f"0 0 {number(WIDTH)} {number(height)}", role="img", class_=kind,
    )  # fmt: skip
    return el("figure", el("figcaption", title), el("ul", keys, class_="legend") if keys else None, svg)


def dot(at: Point, colour: str, title: str, *, radius: float = 3.5) -> Html:
    return el(
        "circle", el("title", title), cx=number(at[0]), cy=number(at[1]), r=number(radius), class_=f"dot {colour}"
    )


def path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def thinned(points: Sequence[Point]) -> list[Point]:
    """Returns at most MOST_POINTS points: the lowest and the highest of each of equal stretches. Every peak stays."""
    if len(points) <= MOST_POINTS:
        return list(points)
    found: list[Point] = [points[0]]
    stretches = MOST_POINTS // 2 - 1
    for index in range(stretches):
        part = points[len(points) * index // stretches : len(points) * (index + 1) // stretches]
        found += sorted({min(part, key=lambda one: one[1]), max(part, key=lambda one: one[1])})
    return [*found, points[-1]]


def scatter(
    title: str,
    points: Sequence[tuple[float, float, str, str]],
    *,
    show: Callable[[float], str],
    show_x: Callable[[float], str],
    x_label: str,
    higher_is_better: bool,
) -> Html | None:
    """Returns a scatter chart. points: (x, y, name, colour). A line joins the points of the Pareto front."""
    if not points:
        return None
    xs, ys = [one[0] for one in points], [one[1] for one in points]
    low, high = span(xs, margin=0.08)
    log = min(xs) > 0 and max(xs) > 20 * min(xs)
    axes = Axes((min(xs) * 0.8, max(xs) * 1.25) if log else (low, high), span(ys, margin=0.1), log_x=log)
    front = pareto([(x, y) for x, y, *_ in points], higher_is_better=higher_is_better)
    body = list(axes.drawn(x_label, show, show_x))
    body.append(el("path", d=path([axes.at(*one) for one in front]), class_="front"))
    for x, y, name, colour in points:
        best = (x, y) in front
        said = f"{name}: {show(y)}, {show_x(x)}" + (", on the Pareto front" if best else "")
        body.append(dot(axes.at(x, y), colour, said, radius=5 if best else 3.5))
    words = f"{len(front)} of {len(points)} runs are on the Pareto front"
    return figure(title, body, words)


def pareto(points: Sequence[Point], *, higher_is_better: bool = True) -> list[Point]:
    """Returns the Pareto front, by rising x: the points for which no point with x as small has y as large."""
    sign = 1 if higher_is_better else -1
    front: list[Point] = []
    for x, y in sorted(set(points), key=lambda one: (one[0], -sign * one[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    return front


def waterfall(title: str, steps: Sequence[tuple[str, str, float]], *, show: Callable[[float], str]) -> Html:
    """Returns a waterfall chart. steps: (name, description, value), in order. Differences are written between them."""
    values = [value for *_, value in steps]
    low, high = min(0.0, *values), max(0.0, *values)
    axes = Axes((0, len(steps)), (low, (high + 0.12 * (high - low)) or 1))
    wide = (WIDTH - LEFT - RIGHT) / len(steps)
    body = list(axes.drawn("", show, lambda _: ""))
    for index, (name, said, value) in enumerate(steps):
        x, y = axes.at(index, value)
        base = axes.at(index, 0.0)[1]
        top, height = min(y, base), abs(base - y)
        body.append(
            el(
                "rect", el("title", f"{said}: {show(value)}"), x=number(x + wide * 0.18), y=number(top),
                width=number(wide * 0.64), height=number(height), rx=3, class_=f"bar {'k0' if index else 'muted'}",
            )
        )  # fmt: skip
        middle = number(x + wide / 2)
        body.append(el("text", show(value), x=middle, y=number(top - 6), text_anchor="middle", class_="strong"))
        body.append(el("text", name, x=middle, y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
        if index:
            change = value - values[index - 1]
            sign = "+" if change >= 0 else "\N{MINUS SIGN}"
            shown = f"{sign}{show(abs(change))}"
            body.append(el("text", shown, x=middle, y=HEIGHT - 3, text_anchor="middle", class_="label"))
    words = ", ".join(f"{name} {show(value)}" for name, _, value in steps)
    return figure(title, body, words)


def calibration_chart(bins: Sequence[tuple[int, float, float]]) -> Html:
    """Returns a calibration chart. A larger dot means more examples.

    bins: (number of examples, mean confidence, share that is right), of the bins with examples.
    """
    axes = Axes((0.0, 1.0), (0.0, 1.0))
    body = list(axes.drawn("confidence", percent, percent))
    body.append(el("path", d=path([axes.at(0, 0), axes.at(1, 1)]), class_="front"))
    most = max(count for count, *_ in bins)
    for count, confidence, _ in bins:
        x, base = axes.at(confidence, 0.0)
        top = axes.at(confidence, 0.3 * count / most)[1]
        body.append(el("rect", x=number(x - 5), y=number(top), width=10, height=number(base - top), class_="bar muted"))
    for count, confidence, right in bins:
        said = f"confidence {percent(confidence)}: {percent(right)} of {count:,} right"
        body.append(dot(axes.at(confidence, right), "k0", said, radius=3 + 5 * math.sqrt(count / most)))
    return figure(
        "Calibration: how often the network is right at each confidence", body,
        "; ".join(f"{percent(confidence)} sure, {percent(right)} right" for _, confidence, right in bins),
    )  # fmt: skip


def heat(
    key: str, rows: Sequence[tuple[str, Sequence[float]]], epochs: Sequence[int], kept: Sequence[tuple[int, str]]
) -> Html:
    """Returns a heat map of the probabilities of one choice: a row for each operation, a column for each epoch.

    kept: (epoch, operation) for each change of the derived operation. The derived operation is framed, and each change
    has a mark.
    """
    height, left, wide = 15.0, 92.0, 290.0
    first, last = epochs[0], epochs[-1]

    def x(epoch: float) -> float:
        return left + wide * (epoch - first) / max(1, last + 1 - first)

    whole = height * len(rows)
    pixels = heat_png([values for _, values in rows])
    body = [
        el(
            "image", href=pixels, x=left, y=4, width=wide, height=number(whole), preserveAspectRatio="none",
            class_="pixels",
        )
    ]  # fmt: skip
    names = [name for name, _ in rows]
    for index, name in enumerate(names):
        y = number(4 + height * (index + 0.5))
        body.append(el("text", short(name, 14), x=left - 6, y=y, dy="0.35em", text_anchor="end"))
    ends = [epoch for epoch, _ in kept[1:]] + [last + 1]
    for number_, ((epoch, name), end) in enumerate(zip(kept, ends, strict=False)):
        if name in names and end > epoch:
            top = 4 + height * names.index(name)
            body.append(
                el(
                    "rect", el("title", f"{name} derived from epoch {epoch} to {end - 1}"), x=number(x(epoch)),
                    y=number(top + 0.75), width=number(max(1.5, x(end) - x(epoch))), height=height - 1.5, class_="kept",
                )
            )  # fmt: skip
        if number_:
            at = number(x(epoch))
            body.append(el("line", x1=at, x2=at, y1=4, y2=number(4 + whole), class_="change"))
    body.append(el("text", f"epoch {first}", x=left, y=number(whole + 17)))
    body.append(el("text", str(last), x=left + wide, y=number(whole + 17), text_anchor="end"))
    moments = ", ".join(f"{name or 'nothing'} from epoch {epoch}" for epoch, name in kept)
    svg = el(
        "svg", el("title", f"{key}: probabilities over the epochs"), el("desc", moments), *body,
        viewBox=f"0 0 {number(left + wide + 6)} {number(whole + 22)}", role="img", class_="chart small",
    )  # fmt: skip
    return el("figure", el("figcaption", key), svg)


def heat_png(rows: Sequence[Sequence[float]]) -> str:
    """Returns a PNG of one colour whose opacity is the value, in [0, 1]. So it suits light and dark mode."""
    levels = 32
    pixels = bytes(
        round((levels - 1) * min(1.0, max(0.0, value)) ** 0.75) if math.isfinite(value) else 0
        for row in rows
        for value in row
    )
    image = Image.frombytes("P", (len(rows[0]), len(rows)), pixels)
    image.putpalette([47, 116, 208] * levels)
    stream = io.BytesIO()
    opaque = bytes(round(255 * level / (levels - 1)) for level in range(levels))
    image.save(stream, format="PNG", transparency=opaque, optimize=True)
    return f"data:image/png;base64,{b64encode(stream.getvalue()).decode()}"
