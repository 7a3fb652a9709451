"""Draws an architecture: its cells, and a list of its other choices."""

from collections.abc import Mapping
from dataclasses import dataclass

from nas.drawing.architecture import Cell, in_words, parted
from nas.drawing.canvas import (
    Box,
    Curve,
    Picture,
    Shape,
    Text,
    Triangle,
    beside,
    framed,
    kind,
    legend,
    short,
    text_width,
)

Probabilities = Mapping[str, Mapping[str, float]]  # choice key -> candidate -> probability

LABEL = 11.0  # font size of an operation's name
PILL = 20.0  # height of the box around the name
LEVEL = 31.0  # extra height of an edge for each node that it passes over
NODE_WIDTH, NODE_HEIGHT = 52.0, 30.0
ROWS = 28  # of a list in one column
MOST_ROWS = 1000  # of a list in all


def draw_architecture(
    choices: Mapping[str, str | None],
    *,
    title: str,
    probabilities: Probabilities | None = None,
    stacked: bool = False,
) -> Picture:
    """Draws cells side by side, or one below the other if `stacked`, with the other choices below the cells.

    probabilities: set the line widths of the edges.
    """
    cells, others = parted(choices)
    parts = []
    if cells:
        drawn = [draw_cell(cell, probabilities or {}) for cell in cells]
        parts.append(drawn[0] if len(drawn) == 1 else beside(drawn, title=title, stacked=stacked, gap=24))
    if others or not cells:
        parts.append(draw_list(others))
    found = {kind(name) for name in choices.values() if name is not None}
    if found:
        parts.append(legend(sorted(found)))
    whole = beside(parts, title=short(title, 60), stacked=True, gap=16)
    whole.description = in_words(choices)
    return framed(whole)


def pill_text(name: str, probability: float | None) -> str:
    return short(name) if probability is None else f"{short(name)} {probability:.0%}"


@dataclass(frozen=True)
class _Line:
    """The line of a cell's nodes. first: x of node 0. unit: from node to node. y: of all nodes."""

    first: float
    unit: float
    y: float

    @property
    def top(self) -> float:
        return self.y - NODE_HEIGHT / 2

    def x(self, node: float) -> float:
        return self.first + self.unit * node

    def port(self, node: int, others: list[int], other: int) -> float:
        """The x where an edge meets a node. A longer edge ends nearer to the middle of the node."""
        ordered = sorted(others, key=lambda one: -abs(one - node))
        side = 1 if other > node else -1
        return self.x(node) + side * (NODE_WIDTH / 2 - 6) * (ordered.index(other) + 1) / (len(ordered) + 0.6)


def draw_cell(cell: Cell, probabilities: Probabilities) -> Picture:
    """Draws the nodes on a line, and each edge as an arc over it. Longer arcs are higher, so that no labels overlap."""
    shares = {
        edge: None if name is None else probabilities.get(cell.keys[edge], {}).get(name)
        for edge, name in cell.edges.items()
    }
    texts = {edge: pill_text(name, shares[edge]) for edge, name in cell.edges.items() if name is not None}
    pills = {edge: text_width(text, LABEL) + 14 for edge, text in texts.items()}
    unit = max([NODE_WIDTH + 40, *(width + 10 for width in pills.values())])
    side = max(NODE_WIDTH / 2, max(pills.values(), default=0) / 2 - unit / 2) + 18
    longest = max(node - source for source, node in cell.edges)
    line = _Line(side, unit, 38 + longest * LEVEL + PILL / 2 + 12 + NODE_HEIGHT / 2)
    computed = [node for node in cell.nodes if node not in cell.inputs]
    last = len(cell.nodes) - 1
    below = 34 + 7 * len(computed) if cell.concatenated else 18
    width = 2 * side + unit * (last + (0.85 if cell.concatenated else 0))
    picture = Picture(width, line.y + NODE_HEIGHT / 2 + below, cell.title)
    picture.description = f"{cell.title}: " + in_words({f"{a} to {b}": name for (a, b), name in cell.edges.items()})
    picture.shapes.append(Box(0, 0, width, picture.height, "panel", 10))
    picture.shapes.append(Text(16, 20, short(cell.title, 40), "muted", 12, "start", bold=True))

    labels: list[Shape] = []
    # Dropped edges are drawn first, so that other edges cover them.
    for edge, name in sorted(cell.edges.items(), key=lambda item: item[1] is not None):
        source, node = edge
        start = line.port(source, [b for a, b in cell.edges if a == source], node)
        end = line.port(node, [a for a, b in cell.edges if b == node], source)
        height = (node - source) * LEVEL + 12
        control = line.top - height * 4 / 3
        points = [(start, line.top), (start, control), (end, control), (end, line.top - (0 if name is None else 6))]
        if name is None:
            picture.shapes.append(Curve(points, "faint", 1.2, dashed=True, title=f"{source} to {node}: dropped"))
            continue
        share = shares[edge]
        colour = f"{kind(name)} line"
        said = f"{source} to {node}: {name}" + ("" if share is None else f", probability {share:.3f}")
        thickness = 2.2 if share is None else 1 + 5 * min(1.0, max(0.0, share))
        arrow = ((end - 4.5, line.top - 8), (end + 4.5, line.top - 8), (end, line.top))
        picture.shapes += [Curve(points, colour, thickness, title=said), Triangle(arrow, colour)]
        left, middle = (start + end - pills[edge]) / 2, (start + end) / 2
        labels.append(Box(left, line.top - height - PILL / 2, pills[edge], PILL, kind(name), PILL / 2, title=said))
        labels.append(Text(middle, line.top - height, texts[edge], "white", LABEL))
    picture.shapes += labels

    if cell.concatenated:
        draw_output(picture, line, computed, out=line.x(last) + 0.85 * unit)
    for node in cell.nodes:
        named = f"in {node}" if node in cell.inputs else "out" if node == last and not cell.concatenated else str(node)
        node_box(picture, line.x(node), line.y, named, computed=node in computed)
    return picture


def draw_output(picture: Picture, line: _Line, computed: list[int], *, out: float) -> None:
    """Draws the output of a cell that concatenates its nodes, and the lines from them. out: its x."""
    for index, node in enumerate(reversed(computed)):
        depth = line.y + NODE_HEIGHT / 2 + 10 + 7 * index
        x = line.x(node)
        corners = [(x, line.y), (x, depth), ((x + out) / 2, depth), (out, depth), (out, line.y)]
        picture.shapes.append(Curve(corners, "faint", 1.4))  # five points, as four points make a Bezier curve
    node_box(picture, out, line.y, "out", computed=False)
    picture.shapes.append(Text(16, picture.height - 16, "out: all nodes concatenated", "muted", 10, "start"))


def node_box(picture: Picture, x: float, y: float, text: str, *, computed: bool) -> None:
    radius = NODE_HEIGHT / 2 if not computed else 7
    box = Box(
        x - NODE_WIDTH / 2, y - NODE_HEIGHT / 2, NODE_WIDTH, NODE_HEIGHT, "node", radius,
        border="faint" if computed else "muted",
    )  # fmt: skip
    picture.shapes += [box, Text(x, y, text, "ink", 12, bold=True)]


def draw_list(choices: Mapping[str, str | None]) -> Picture:
    """Lists the chosen operation of every choice. The part of a key before its last slash becomes a heading."""
    rows: list[tuple[str, str | None, bool]] = []  # text, operation, whether it is a heading
    last = ""
    for key, name in choices.items():
        parent, _, leaf = key.rpartition("/")
        if parent and parent != last:
            rows.append((short(parent, 40), None, True))
        last = parent
        rows.append((("  " if parent else "") + short(leaf, 40), name, False))
    if len(rows) > MOST_ROWS:
        rows[MOST_ROWS:] = [(f"and {len(rows) - MOST_ROWS} more", None, True)]
    rows = rows or [("nothing was searched", None, True)]
    height, blocks = 26.0, [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    pictures = []
    for block in blocks:
        keys = max(text_width(text, 12) for text, _, _ in block) + 16
        pills = max(text_width(short(name or "dropped", 40), LABEL) + 14 for _, name, _ in block)
        column = Picture(16 + keys + pills + 16, 12 + height * len(block) + 8, "choices")
        column.shapes.append(Box(0, 0, column.width, column.height, "panel", 10))
        for index, (text, name, heading) in enumerate(block):
            y = 10 + height * (index + 0.5)
            column.shapes.append(Text(16, y, text.lstrip(), "muted" if heading else "ink", 12, "start", bold=heading))
            if text.startswith("  "):
                column.shapes[-1] = Text(30, y, text.strip(), "ink", 12, "start")
                branch = [(20.0, y - height / 2 + 2), (20.0, y), (26.0, y)]
                column.shapes.append(Curve(branch, "faint", 1.4))
            if not heading:
                column.shapes += pill(16 + keys, y, name)
        pictures.append(column)
    return pictures[0] if len(pictures) == 1 else beside(pictures, title="choices", gap=16)


def pill(x: float, y: float, name: str | None) -> list[Shape]:
    if name is None:
        return [Text(x, y, "dropped", "muted", LABEL, "start")]
    text = short(name, 40)
    width = text_width(text, LABEL) + 14
    return [
        Box(x, y - PILL / 2, width, PILL, kind(name), PILL / 2, title=name),
        Text(x + width / 2, y, text, "white", LABEL),
    ]
