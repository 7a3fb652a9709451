"""Pictures made of shapes with named colours. `svg` and `png` write a picture."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from nas.untrusted.escaping import printable

Point = tuple[float, float]

# name -> (on a light background, on a dark one)
COLOURS = {
    "surface": ("#ffffff", "#0d1117"),
    "panel": ("#f4f6f9", "#161b22"),
    "ink": ("#1f2430", "#e6edf3"),
    "muted": ("#5b6472", "#9aa4b2"),
    "faint": ("#c9d0da", "#363d48"),
    "node": ("#e4e9f1", "#2a323e"),
    "white": ("#ffffff", "#ffffff"),
    "heat": ("#1d5fbf", "#3b82e0"),
    "mark": ("#c2410c", "#fb923c"),
    # Kinds of operations. White text on these colours has a contrast of at least 4.5.
    "skip": ("#9a5b00", "#9a5b00"),
    "pool": ("#067a57", "#067a57"),
    "separable": ("#1463b8", "#1463b8"),
    "dilated": ("#7a3fb0", "#7a3fb0"),
    "convolution": ("#b3325f", "#b3325f"),
    "none": ("#667080", "#667080"),
    "other": ("#0e7490", "#0e7490"),
    # The lines of these kinds, brighter on a dark background.
    "skip line": ("#9a5b00", "#e2a33d"),
    "pool line": ("#067a57", "#35c496"),
    "separable line": ("#1463b8", "#5aa5f5"),
    "dilated line": ("#7a3fb0", "#b98bea"),
    "convolution line": ("#b3325f", "#ec7aa2"),
    "none line": ("#667080", "#9aa4b2"),
    "other line": ("#0e7490", "#3fc0dd"),
}
CHARACTER = 0.602  # width of a character of a monospaced font, relative to the font size


@dataclass(frozen=True)
class Curve:
    """A cubic Bezier curve through four points, or a polyline through another number of points."""

    points: Sequence[Point]
    colour: str
    width: float = 1.5
    dashed: bool = False
    opacity: float = 1.0
    title: str = ""


@dataclass(frozen=True)
class Box:
    """A filled rectangle, with a border if `border` names a colour."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    radius: float = 0.0
    opacity: float = 1.0
    border: str = ""
    title: str = ""


@dataclass(frozen=True)
class Triangle:
    """An arrow's head."""

    points: tuple[Point, Point, Point]
    colour: str


@dataclass(frozen=True)
class Text:
    """One line of text; y is the middle of its height. anchor: start, middle or end. turned: degrees, clockwise."""

    x: float
    y: float
    text: str
    colour: str = "ink"
    size: float = 12.0
    anchor: str = "middle"
    bold: bool = False
    turned: float = 0.0


Shape = Curve | Box | Triangle | Text


@dataclass
class Picture:
    """A list of shapes. width, height: in pixels. title: a short title. description: the content as text."""

    width: float
    height: float
    title: str
    description: str = ""
    shapes: list[Shape] = field(default_factory=list)

    def put(self, other: "Picture", x: float, y: float) -> None:
        """Adds another picture with its upper left corner at (x, y)."""
        self.shapes += (moved(shape, x, y) for shape in other.shapes)


def moved(shape: Shape, x: float, y: float) -> Shape:
    match shape:
        case Curve():
            return Curve(
                [(a + x, b + y) for a, b in shape.points],
                shape.colour, shape.width, shape.dashed, shape.opacity, shape.title,
            )  # fmt: skip
        case Triangle():
            (a, b), (c, d), (e, f) = shape.points
            return Triangle(((a + x, b + y), (c + x, d + y), (e + x, f + y)), shape.colour)
        case Box():
            return Box(
                shape.x + x, shape.y + y, shape.width, shape.height,
                shape.colour, shape.radius, shape.opacity, shape.border, shape.title,
            )  # fmt: skip
        case Text():
            return Text(
                shape.x + x, shape.y + y, shape.text, shape.colour, shape.size, shape.anchor, shape.bold, shape.turned
            )


def beside(pictures: Sequence[Picture], *, title: str, gap: float = 28, stacked: bool = False) -> Picture:
    """Joins pictures into one picture, side by side or one below the other."""
    if stacked:
        width = max(one.width for one in pictures)
        height = sum(one.height for one in pictures) + gap * (len(pictures) - 1)
    else:
        width = sum(one.width for one in pictures) + gap * (len(pictures) - 1)
        height = max(one.height for one in pictures)
    whole = Picture(width, height, title, "; ".join(one.description for one in pictures if one.description))
    x = y = 0.0
    for one in pictures:
        whole.put(one, x, y)
        x, y = (x, y + one.height + gap) if stacked else (x + one.width + gap, y)
    return whole


def framed(inner: Picture, *, margin: float = 20) -> Picture:
    """Adds a background, a margin and the title as a heading."""
    heading = 30.0
    width = max(inner.width, text_width(inner.title, 15)) + 2 * margin
    whole = Picture(width, inner.height + heading + 2 * margin, inner.title, inner.description)
    whole.shapes.append(Box(0, 0, whole.width, whole.height, "surface"))
    whole.shapes.append(Text(margin, margin + 8, inner.title, "ink", 15, "start", bold=True))
    whole.put(inner, margin, margin + heading)
    return whole


def text_width(text: str, size: float) -> float:
    """The width of a text in a monospaced font, in pixels."""
    return columns(text) * size * CHARACTER


def columns(text: str) -> int:
    """The number of columns that a text takes in a terminal or a monospaced font."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def short(text: str, limit: int = 22) -> str:
    """A name on one line. Leaves out the middle of a name longer than `limit` characters."""
    text = printable(text)
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}..{text[-(limit - limit // 2 - 1) :]}"


WORDS = (
    ("none", ("none", "zero")),
    ("skip", ("skip", "identity")),
    ("pool", ("pool",)),
    ("separable", ("sep_", "separable", "mbconv", "depthwise", "ir_")),
    ("dilated", ("dil_", "dilated", "atrous")),
    ("convolution", ("conv",)),
)
NAMES = {
    "none": "none",
    "skip": "skip",
    "pool": "pooling",
    "separable": "separable convolution",
    "dilated": "dilated convolution",
    "convolution": "convolution",
    "other": "other operation",
}


def kind(operation: str) -> str:
    """The kind of an operation, guessed from its name, because a drawing has no modules to inspect."""
    lower = operation.lower()
    return next((found for found, words in WORDS if any(word in lower for word in words)), "other")


def legend(kinds: Sequence[str]) -> Picture:
    """A row that shows the colour of each kind of operation."""
    row, x = Picture(0, 18, "legend"), 0.0
    for one in (name for name in NAMES if name in kinds):
        row.shapes.append(Box(x, 3, 12, 12, one, 3))
        row.shapes.append(Text(x + 18, 9, NAMES[one], "muted", 11, "start"))
        x += 18 + text_width(NAMES[one], 11) + 20
    row.width = max(0, x - 20)
    return row
