"""Draws a heat map: one row per choice, one column per operation. The colour shows the probability."""

import math
from collections.abc import Mapping

from nas.drawing.architecture import parted
from nas.drawing.architecture_picture import Probabilities
from nas.drawing.canvas import Box, Picture, Text, beside, framed, short, text_width

WIDTH, HEIGHT = 46.0, 24.0  # the size of a field
MOST_COLUMNS = 40
MOST_ROWS = 60


def draw_heat_map(
    probabilities: Probabilities,
    *,
    title: str,
    chosen: Mapping[str, str | None] | None = None,
    stacked: bool = False,
) -> Picture:
    """Draws cells side by side, or one below the other if `stacked`. chosen: derived operations, which get a frame."""
    cells, others = parted(dict.fromkeys(probabilities))
    tables = [(cell.title, {f"{a}-{b}": key for (a, b), key in cell.keys.items()}) for cell in cells]
    if others or not cells:
        tables.append(("choices", {key: key for key in others}))
    parts = [draw_table(name, rows, probabilities, chosen or {}) for name, rows in tables]
    whole = parts[0] if len(parts) == 1 else beside(parts, title=title, stacked=stacked, gap=24)
    whole.title = short(title, 60)
    return framed(whole)


def draw_table(
    name: str, rows: Mapping[str, str], probabilities: Probabilities, chosen: Mapping[str, str | None]
) -> Picture:
    """Draws one table. rows: text -> key of a choice."""
    left_out = len(rows) - MOST_ROWS
    rows = dict(list(rows.items())[:MOST_ROWS])
    names = list(dict.fromkeys(name for key in rows.values() for name in probabilities[key]))
    more = len(names) - MOST_COLUMNS
    names = names[:MOST_COLUMNS]
    size = 11.0
    left = max([60.0, *(text_width(short(text), size) for text in rows)]) + 28
    longest = max((text_width(short(one), size) for one in names), default=0)
    top = 34 + longest * math.sin(math.radians(40)) + 14
    slant = longest * math.cos(math.radians(40))
    width = max(left + WIDTH * len(names) + max(16, slant - WIDTH / 2 + 12), left + text_width(name, 12))
    notes = [f"{left_out} more choices"] * (left_out > 0) + [f"{more} more operations"] * (more > 0)
    picture = Picture(width, top + HEIGHT * len(rows) + 14 + 18 * bool(notes), name)
    picture.shapes.append(Box(0, 0, width, picture.height, "surface"))
    picture.shapes.append(Text(4, 12, short(name, 40), "muted", 12, "start", bold=True))
    for column, one in enumerate(names):
        x = left + WIDTH * (column + 0.5)
        picture.shapes.append(Text(x - 4, top - 10, short(one), "ink", size, "start", turned=-40))
    for row, (text, key) in enumerate(rows.items()):
        y = top + HEIGHT * row
        picture.shapes.append(Text(left - 10, y + HEIGHT / 2, short(text), "ink", size, "end"))
        for column, one in enumerate(names):
            if one not in probabilities[key]:
                continue
            p = probabilities[key][one]
            share = min(1.0, max(0.0, p)) if math.isfinite(p) else 0.0
            x = left + WIDTH * column
            kept = chosen.get(key) == one
            said = f"{key}: {one} {p:.3f}" + (", derived" if kept else "")
            field = (x + 1, y + 1, WIDTH - 2, HEIGHT - 2)
            picture.shapes.append(Box(*field, "panel", 3))
            border = "mark" if kept else ""
            picture.shapes.append(Box(*field, "heat", 3, opacity=share, border=border, title=said))
            shown = f"{100 * share:.0f}" if math.isfinite(p) else "nan"
            colour = "white" if share > 0.45 else "ink" if kept or share >= 0.1 else "muted"
            picture.shapes.append(Text(x + WIDTH / 2, y + HEIGHT / 2, shown, colour, 10, bold=kept))
    if notes:
        picture.shapes.append(Text(left, picture.height - 12, ", ".join(notes), "muted", 10, "start"))
    picture.description = f"{name}: probabilities of {len(names)} operations in per cent"
    return picture
