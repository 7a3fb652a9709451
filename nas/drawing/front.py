"""Draws a chart of several networks: the score of each against its cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nas.drawing.canvas import Box, Curve, Picture, Text, framed

WIDTH, HEIGHT, LEFT, BOTTOM = 460.0, 260.0, 70.0, 46.0
DOT, MARKS = 9.0, 4  # side of a dot; steps between the numbers of an axis


@dataclass(frozen=True)
class Axis:
    """label: below the numbers. show: a value as text."""

    label: str
    show: Callable[[float], str]


def draw_front(points: Sequence[tuple[float, float]], *, x: Axis, y: Axis, title: str) -> Picture:
    """Draws a dot for each (cost, merit), joined by rising cost."""
    across, up = ([point[place] for point in points] for place in (0, 1))
    low_x, high_x = spread(across)
    low_y, high_y = spread(up)
    said = "; ".join(f"{x.show(cost)} {x.label}: {y.show(merit)}" for cost, merit in points)
    inner = Picture(WIDTH, HEIGHT, title, f"{y.label} by {x.label}: {said}")

    def at(cost: float, merit: float) -> tuple[float, float]:
        wide, high = WIDTH - LEFT - 20, HEIGHT - BOTTOM - 24
        return LEFT + wide * (cost - low_x) / (high_x - low_x), 24 + high * (high_y - merit) / (high_y - low_y)

    inner.shapes.append(Text(0, 6, y.label, "muted", 12, "start"))
    for step in range(MARKS + 1):
        cost, merit = (low + (high - low) * step / MARKS for low, high in ((low_x, high_x), (low_y, high_y)))
        inner.shapes.append(Curve([at(low_x, merit), at(high_x, merit)], "faint", 1))
        inner.shapes.append(Text(LEFT - 8, at(low_x, merit)[1], y.show(merit), "muted", 11, "end"))
        inner.shapes.append(Text(at(cost, low_y)[0], HEIGHT - BOTTOM + 16, x.show(cost), "muted", 11))
    inner.shapes.append(Text(WIDTH - 20, HEIGHT - 8, x.label, "muted", 12, "end"))
    if len(points) > 1:
        inner.shapes.append(Curve([at(*point) for point in sorted(points)], "heat", 1.5))
    for cost, merit in points:
        left, top = at(cost, merit)
        text = f"{x.show(cost)} {x.label}, {y.label} {y.show(merit)}"
        inner.shapes.append(Box(left - DOT / 2, top - DOT / 2, DOT, DOT, "heat", DOT / 2, title=text))
    return framed(inner)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis, with a margin."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin
