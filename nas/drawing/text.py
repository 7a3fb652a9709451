"""Draws the cells of an architecture with characters, for a terminal."""

from itertools import zip_longest

from nas.drawing.architecture import Cell
from nas.drawing.canvas import columns, short

LINES = "─┐┴┤▶"  # line, first of several, last of several, between them, arrow
PLAIN = str.maketrans({"─": "-", "┐": "+", "┴": "+", "┤": "+", "▶": ">"})


def draw_cells(cells: list[Cell], *, width: int, encoding: str = "utf-8") -> str:
    """Draws a paragraph for each cell, side by side if `width` columns are enough.

    encoding: of the terminal. If the encoding lacks the line characters, ASCII characters replace them.
    """
    drawn = [cell_lines(cell) for cell in cells]
    try:
        LINES.encode(encoding)
    except (UnicodeError, LookupError):
        drawn = [[line.translate(PLAIN) for line in lines] for lines in drawn]
    widths = [max(map(columns, lines)) for lines in drawn]
    if sum(widths) + 4 * (len(widths) - 1) > width:
        return "\n\n".join("\n".join(lines) for lines in drawn)
    rows = zip_longest(*drawn, fillvalue="")
    return "\n".join(
        "    ".join(line + " " * (wide - columns(line)) for line, wide in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def cell_lines(cell: Cell) -> list[str]:
    """The lines of one cell. The edges into a node stand below one another and join before the node."""
    kept: dict[int, list[tuple[str, str]]] = {}
    for (source, node), name in sorted(cell.edges.items(), key=lambda item: (item[0][1], item[0][0])):
        into = kept.setdefault(node, [])
        if name is not None:
            into.append((f"in {source}" if source in cell.inputs else str(source), short(name, 40)))
    edges = [edge for into in kept.values() for edge in into]
    first = max((columns(begin) for begin, _ in edges), default=0)
    longest = max((columns(operation) for _, operation in edges), default=0)
    lines = [short(cell.title, 40)]
    for node, into in kept.items():
        last = node == cell.nodes[-1] and not cell.concatenated
        target = f"{node} (out)" if last else str(node)
        if not into:
            lines.append(f"  no edge is kept into {target}")
        for index, (begin, operation) in enumerate(into):
            dashes = "─" * (longest - columns(operation) + 1)
            begins, ends = index == 0, index == len(into) - 1
            join = "─" if begins and ends else "┐" if begins else "┴" if ends else "┤"
            arrow = f"─▶ {target}" if ends else ""
            lines.append(f"  {' ' * (first - columns(begin))}{begin} ─ {operation} {dashes}{join}{arrow}")
    if cell.concatenated:
        lines.append(f"  out: {', '.join(map(str, kept))} concatenated")
    return lines
