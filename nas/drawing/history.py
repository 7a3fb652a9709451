"""Draws the probabilities over the epochs: one small chart per choice, with a line for each operation."""

import math
from collections.abc import Mapping, Sequence

from nas.drawing.canvas import Box, Curve, Picture, Point, Text, framed, short, text_width

LINES = ("separable", "mark", "pool", "dilated", "skip line", "convolution", "other line", "none")  # colours
ACROSS = 5  # charts in a row
WIDTH, HEIGHT, GAP = 168.0, 84.0, 14.0
MOST = 40  # charts
POINTS = 60  # the most points of a line


def draw_history(history: Mapping[str, Mapping[str, Sequence[float]]], *, title: str) -> Picture:
    """Draws the charts of a search. history: choice key -> operation -> its probability after each epoch."""
    keys = list(history)[:MOST]
    names = list(dict.fromkeys(name for key in keys for name in history[key]))
    across = min(ACROSS, max(1, len(keys)))
    rows = -(-len(keys) // across)
    width = max(across * (WIDTH + GAP), 300)
    whole = Picture(width, 0, short(title, 60))
    x = y = 0.0
    for index, name in enumerate(names[:24]):
        wide = 16 + text_width(short(name), 11) + 18
        if x + wide > width:
            x, y = 0.0, y + 18
        whole.shapes.append(Box(x, y + 3, 11, 11, colour(index), 3))
        whole.shapes.append(Text(x + 16, y + 9, short(name), "muted", 11, "start"))
        x += wide
    top = y + 30
    for place, key in enumerate(keys):
        left, above = place % across * (WIDTH + GAP), top + place // across * (HEIGHT + 34)
        whole.shapes.append(Text(left, above + 8, short(key), "ink", 11, "start"))
        whole.shapes.append(Box(left, above + 18, WIDTH, HEIGHT, "panel", 4))
        for name, values in history[key].items():
            line = points(values, left + 4, above + 18 + 4, WIDTH - 8, HEIGHT - 8)
            whole.shapes.append(Curve(line, colour(names.index(name)), 1.6, title=f"{key}: {name}"))
    whole.height = top + rows * (HEIGHT + 34)
    return framed(whole)


def colour(index: int) -> str:
    return LINES[index % len(LINES)]


def points(values: Sequence[float], x: float, y: float, width: float, height: float) -> list[Point]:
    """The points of a line over all epochs, with 1 at the top. At least five, as four points make a Bezier curve."""
    many = max(5, min(POINTS, len(values)))
    last = len(values) - 1
    found = []
    for step in range(many):
        value = values[round(step / (many - 1) * last)]
        share = min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0
        found.append((x + width * step / (many - 1), y + height * (1 - share)))
    return found
