"""Writes a picture as PNG. Pillow draws the same shapes as the SVG."""

import functools
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from nas.drawing.canvas import COLOURS, Box, Curve, Picture, Point, Shape, Text, Triangle

FINE = 2  # drawn pixels per pixel of the result, in each direction, to smooth lines
LARGEST = 4000  # pixels per side; a larger picture is scaled down


def to_png(picture: Picture, *, theme: str = "light", colours: int = 64) -> tuple[bytes, int, int]:
    """Returns the file, its width and its height. theme: ``light`` or ``dark``.

    colours: the size of the palette. 64 colours make a third of the bytes.
    """
    shade = ("light", "dark").index(theme)
    scale = min(1.0, LARGEST / max(picture.width, picture.height))
    width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    image = Image.new("RGB", (width * FINE, height * FINE), COLOURS["surface"][shade])
    pen = Pen(image, scale * FINE, shade)
    for shape in picture.shapes:
        pen.draw(shape)
    small = image.resize((width, height), Image.Resampling.BOX).quantize(colours, method=Image.Quantize.MEDIANCUT)
    stream = io.BytesIO()
    small.save(stream, format="PNG")
    return stream.getvalue(), width, height


class Pen:
    def __init__(self, image: Image.Image, scale: float, shade: int) -> None:
        self._image = image
        self._draw = ImageDraw.Draw(image)
        self._scale = scale
        self._shade = shade

    def draw(self, shape: Shape) -> None:
        match shape:
            case Curve():
                self._curve(shape)
            case Triangle():
                self._draw.polygon([self._at(point) for point in shape.points], fill=self._colour(shape.colour))
            case Box():
                corner = self._at((shape.x, shape.y)), self._at((shape.x + shape.width, shape.y + shape.height))
                self._draw.rounded_rectangle(
                    corner,
                    radius=shape.radius * self._scale,
                    fill=self._colour(shape.colour, shape.opacity),
                    outline=self._colour(shape.border) if shape.border else None,
                    width=max(1, round(self._scale)),
                )
            case Text():
                self._text(shape)

    def _at(self, point: Point) -> Point:
        return point[0] * self._scale, point[1] * self._scale

    def _colour(self, name: str, opacity: float = 1.0) -> tuple[int, int, int]:
        """The colour mixed with the background, which is nearly always below the shape."""
        over, under = (bytes.fromhex(COLOURS[one][self._shade][1:]) for one in (name, "surface"))
        red, green, blue = (round(a * opacity + b * (1 - opacity)) for a, b in zip(over, under, strict=True))
        return red, green, blue

    def _curve(self, shape: Curve) -> None:
        points = bezier(shape.points) if len(shape.points) == 4 else list(shape.points)
        colour, width = self._colour(shape.colour, shape.opacity), max(1, round(shape.width * self._scale))
        at = [self._at(point) for point in points]
        if shape.dashed:
            for start, end in zip(at[::2], at[1::2], strict=False):
                self._draw.line([start, end], fill=colour, width=width)
        else:
            self._draw.line(at, fill=colour, width=width, joint="curve")

    def _text(self, shape: Text) -> None:
        drawn = face(round(shape.size * self._scale))
        x, y = self._at((shape.x, shape.y))
        anchor = {"start": "lm", "middle": "mm", "end": "rm"}[shape.anchor]
        colour = self._colour(shape.colour)
        if not shape.turned:
            self._draw.text((x, y), shape.text, fill=colour, font=drawn, anchor=anchor)
            return
        side = 2 * round(drawn.getlength(shape.text)) + 8
        mask = Image.new("L", (side, side))
        ImageDraw.Draw(mask).text((side / 2, side / 2), shape.text, fill=255, font=drawn, anchor=anchor)
        turned = mask.rotate(-shape.turned, resample=Image.Resampling.BICUBIC)
        self._image.paste(colour, (round(x - side / 2), round(y - side / 2)), turned)


@functools.lru_cache(maxsize=16)
def face(size: int) -> Any:
    """Pillow's own font, so that pictures need no system font."""
    return ImageFont.load_default(size=max(1, size))


def bezier(points: Sequence[Point], steps: int = 40) -> list[Point]:
    """Points on a cubic Bezier curve."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = points
    found = []
    for step in range(steps + 1):
        t = step / steps
        a, b, c, d = (1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
        found.append((a * ax + b * bx + c * cx + d * dx, a * ay + b * by + c * cy + d * dy))
    return found
