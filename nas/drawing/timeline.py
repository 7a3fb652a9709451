"""Which operation leads at every choice, and when that changed: a strip for each choice, from the first epoch on."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from nas.drawing.architecture import parted
from nas.drawing.canvas import Box, Picture, Text, Triangle, beside, framed, short, text_width
from nas.drawing.history import colour

STRIP = 560.0  # width of a strip
ROW, HEIGHT = 26.0, 20.0  # from strip to strip, and of a strip
LEVELS = 6  # shades of a strip
MOST_ROWS = 60
Choices = Mapping[str, str | None]


def draw_timeline(
    history: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    epochs: Sequence[int],
    title: str,
    derived: Sequence[tuple[int, Choices]] = (),
) -> Picture:
    """history: choice key -> operation -> its probability after each of `epochs`, which rise.

    derived: (epoch, all choices), for each epoch after which something else was derived; every change gets a mark.
    """
    cells, others = parted(dict.fromkeys(history))
    tables = [(cell.title, {f"{a}-{b}": key for (a, b), key in cell.keys.items()}) for cell in cells]
    if others or not cells:
        tables.append(("choices", {key: key for key in others}))
    names = list(dict.fromkeys(name for of in history.values() for name in of))
    left = max([40.0, *(text_width(short(text), 11) for _, rows in tables for text in rows)]) + 14
    parts = [draw_table(name, rows, history, epochs, derived, names, left) for name, rows in tables]
    whole = beside([legend(names, left + STRIP + 160), *parts], title=short(title, 60), stacked=True, gap=18)
    whole.description = "; ".join(in_words(key, history[key], epochs) for key in list(history)[:MOST_ROWS])
    return framed(whole)


def in_words(key: str, of: Mapping[str, Sequence[float]], epochs: Sequence[int]) -> str:
    runs = [f"{name} from epoch {epochs[start]}" for name, start, _ in leaders(of, len(epochs))]
    return f"{key}: {', '.join(runs[-6:])}"


def legend(names: Sequence[str], width: float) -> Picture:
    row = Picture(width, 18, "legend")
    x = y = 0.0
    for index, name in enumerate(names[:24]):
        wide = 16 + text_width(short(name), 11) + 18
        if x and x + wide > width:
            x, y = 0.0, y + 18
        row.shapes.append(Box(x, y + 3, 11, 11, colour(index), 3))
        row.shapes.append(Text(x + 16, y + 9, short(name), "muted", 11, "start"))
        x += wide
    row.height = y + 18
    return row


def leaders(of: Mapping[str, Sequence[float]], count: int) -> Iterator[tuple[str, int, int]]:
    """(operation, first, last + 1) of the stretches in which one operation has the largest probability."""
    begin, leading = 0, ""
    for index in range(count):
        found = {name: values[index] for name, values in of.items() if math.isfinite(values[index])}
        best = max(found, key=lambda name: found[name]) if found else leading
        if best != leading and index:
            yield leading, begin, index
            begin = index
        leading = best
    if count:
        yield leading, begin, count


def draw_table(
    name: str,
    rows: Mapping[str, str],
    history: Mapping[str, Mapping[str, Sequence[float]]],
    epochs: Sequence[int],
    derived: Sequence[tuple[int, Choices]],
    names: Sequence[str],
    left: float,
) -> Picture:
    """rows: text -> key of a choice. left: width of the texts."""
    more = len(rows) - MOST_ROWS
    rows = dict(list(rows.items())[:MOST_ROWS])
    top = 28.0
    picture = Picture(left + STRIP + 160, top + ROW * len(rows) + 20 + 16 * (more > 0), name)
    picture.shapes.append(Text(0, 10, short(name, 40), "muted", 12, "start", bold=True))
    first, last = epochs[0], epochs[-1]

    def x(index: float) -> float:
        """The x at which the stretch of the epoch at an index begins."""
        if index >= len(epochs):
            return left + STRIP
        return left + STRIP * (epochs[int(index)] - first) / max(1, last + 1 - first)

    for row, (text, key) in enumerate(rows.items()):
        y, of = top + ROW * row, history[key]
        picture.shapes.append(Text(left - 10, y + HEIGHT / 2, short(text), "ink", 11, "end"))
        for leader, begin, end in leaders(of, len(epochs)):
            hue = colour(names.index(leader)) if leader in names else "none"
            for start, stop, level in shades(of.get(leader, ()), begin, end):
                opacity = 0.08 + 0.5 * level / LEVELS
                picture.shapes.append(Box(x(start), y, x(stop) - x(start), HEIGHT - 3, hue, 0, opacity))
            said = f"{key}: {leader} leads from epoch {epochs[begin]} to {epochs[end - 1]}"
            wide = x(end) - x(begin)
            picture.shapes.append(Box(x(begin), y + HEIGHT - 3, wide, 3, hue, title=said))
            if text_width(short(leader), 10) + 8 < wide:
                picture.shapes.append(Text(x(begin) + 5, y + HEIGHT / 2 - 1.5, short(leader), "ink", 10, "start"))
        for epoch in changes(derived, key):
            at = left + STRIP * (epoch - first) / max(1, last + 1 - first)
            picture.shapes.append(Box(at - 0.75, y - 2, 1.5, HEIGHT + 2, "mark", title=f"{key} changed, epoch {epoch}"))
            picture.shapes.append(Triangle(((at - 4, y - 4), (at + 4, y - 4), (at, y + 1)), "mark"))
        kept = derived[-1][1].get(key) if derived else next(iter(list(leaders(of, len(epochs)))[-1:]), ("",))[0]
        picture.shapes.append(
            Text(left + STRIP + 12, y + HEIGHT / 2, short(kept or "dropped"), "ink" if kept else "muted", 11, "start")
        )
    below = top + ROW * len(rows) + 4
    for epoch, anchor in {first: "start", (first + last) // 2: "middle", last: "end"}.items():
        at = left + STRIP * (epoch - first) / max(1, last - first)
        picture.shapes.append(Text(at, below, f"epoch {epoch}", "muted", 10, anchor))
    picture.shapes.append(Text(left + STRIP + 12, top - 18, "derived" if derived else "leads", "muted", 10, "start"))
    if more > 0:
        picture.shapes.append(Text(left, below + 16, f"{more} more choices", "muted", 10, "start"))
    return picture


def shades(values: Sequence[float], begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(first, last + 1, shade) of the stretches of equal shade between two indices."""
    start, level = begin, -1
    for index in range(begin, end):
        value = values[index] if index < len(values) else 0.0
        now = round(LEVELS * min(1.0, max(0.0, value))) if math.isfinite(value) else 0
        if now != level and index > begin:
            yield start, index, level
            start = index
        level = now
    yield start, end, level


def changes(derived: Sequence[tuple[int, Choices]], key: str) -> Iterator[int]:
    """The epochs after which another operation was derived for a choice than before."""
    for (_, before), (epoch, now) in itertools.pairwise(derived):
        if before.get(key) != now.get(key):
            yield epoch
