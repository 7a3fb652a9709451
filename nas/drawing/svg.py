"""Writes a picture as SVG: one file without external references, for light and dark backgrounds."""

from collections.abc import Iterator, Sequence
from html import escape

from nas.drawing.canvas import COLOURS, Box, Curve, Picture, Point, Shape, Text, Triangle
from nas.untrusted.escaping import printable

FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"


def to_svg(picture: Picture, *, theme: str = "auto") -> str:
    """Returns the SVG text. theme: ``light``, ``dark``, or ``auto`` to follow the reader's system."""
    body = "\n".join(element(shape) for shape in picture.shapes)
    used = [name for name in COLOURS if f"f-{css(name)}" in body or f"s-{css(name)}" in body]
    light, dark = ("".join(rules(name, shade) for name in used) for shade in (0, 1))
    style = {"light": light, "dark": dark, "auto": f"{light}\n@media(prefers-color-scheme:dark){{{dark}}}"}[theme]
    width, height = number(picture.width), number(picture.height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="{FONTS}">\n'
        f"<title>{text(picture.title)}</title>\n<desc>{text(picture.description)}</desc>\n"
        f"<style>{style}</style>\n{body}\n</svg>\n"
    )


def rules(name: str, shade: int) -> str:
    colour = COLOURS[name][shade]
    return f".f-{css(name)}{{fill:{colour}}}.s-{css(name)}{{stroke:{colour}}}"


def css(name: str) -> str:
    return name.replace(" ", "-")


def element(shape: Shape) -> str:
    match shape:
        case Curve():
            dashes = ' stroke-dasharray="4 4"' if shape.dashed else ""
            return titled(
                "path",
                f'd="{path(shape.points)}" fill="none" class="s-{css(shape.colour)}" '
                f'stroke-width="{number(shape.width)}" stroke-linecap="round"{dashes}{opaque(shape.opacity)}',
                shape.title,
            )
        case Triangle():
            corners = " ".join(f"{number(x)},{number(y)}" for x, y in shape.points)
            return f'<polygon points="{corners}" class="f-{css(shape.colour)}"/>'
        case Box():
            border = f" s-{css(shape.border)}" if shape.border else ""
            return titled(
                "rect",
                " ".join(f'{name}="{number(getattr(shape, name))}"' for name in ("x", "y", "width", "height"))
                + (f' rx="{number(shape.radius)}"' if shape.radius else "")
                + f' class="f-{css(shape.colour)}{border}"{opaque(shape.opacity, "fill-opacity")}',
                shape.title,
            )
        case Text():
            x, y = number(shape.x), number(shape.y)
            turn = f' transform="rotate({number(shape.turned)} {x} {y})"' if shape.turned else ""
            weight = ' font-weight="600"' if shape.bold else ""
            return (
                f'<text x="{x}" y="{y}" dy="0.35em" font-size="{number(shape.size)}" text-anchor="{shape.anchor}" '
                f'class="f-{css(shape.colour)}"{weight}{turn}>{text(shape.text)}</text>'
            )


def titled(name: str, attributes: str, title: str) -> str:
    return f"<{name} {attributes}><title>{text(title)}</title></{name}>" if title else f"<{name} {attributes}/>"


def path(points: Sequence[Point]) -> str:
    first, *others = points
    letter = "C" if len(others) == 3 else "L"
    return f"M{pair(first)}{letter}{' '.join(map(pair, others))}"


def pair(point: Point) -> str:
    return f"{number(point[0])} {number(point[1])}"


def opaque(opacity: float, name: str = "opacity") -> str:
    return "" if opacity == 1 else f' {name}="{number(opacity)}"'


def text(of: str) -> str:
    """Escapes markup, and characters that XML cannot contain: lone surrogates, control characters, U+FFFE."""
    return escape("".join(xml_letters(printable(of))))


def xml_letters(of: str) -> Iterator[str]:
    for letter in of:
        yield repr(letter)[1:-1] if letter in "\ufffe\uffff" else letter


def number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
