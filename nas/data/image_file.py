"""Reads one image file with Pillow: its header, or its pixels as a tensor of the wanted shape."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nas.errors import ConfigError, DataError
from nas.untrusted import regular_file

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = 1
TURNS = {  # orientation -> Pillow's name of the transposition that makes the image upright
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
SIDEWAYS = frozenset({5, 6, 7, 8})  # these swap width and height
# The formats that Pillow may read, whatever the file is called. Its other readers run programs (EPS) or are seldom
# used. AVIF comes last, because some builds of Pillow lack it.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "AVIF")
SIDE = 2**13  # pixels of the largest image_size, whose square is the largest image that is decoded
PIXELS = SIDE**2  # in the largest image that is decoded
BYTES_PER_PIXEL = 12  # at most, while an image is decoded: the original, the converted image and the tensor
MEMORY = 3 * 2**28  # bytes for all images that are decoded at the same time
STRIP = 2**20  # pixels that are converted at a time
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})


@dataclass(frozen=True)
class Header:
    """The header of an image: what is known before its pixels are decoded."""

    width: int
    height: int
    grey: bool
    turned: bool = False  # by its EXIF orientation; width and height are those of the upright image
    alpha: bool = False
    deep: bool = False  # more than 8 bits a channel
    animated: bool = False  # several frames or pages


def read_header(path: Path) -> Header:
    """Reads the header of a file. Call it inside `pillow_warnings`.

    Raises DataError, naming the file, if Pillow cannot identify it.
    """
    with _opened(path) as image:
        turn = orientation(image)
        width, height = image.size if turn not in SIDEWAYS else reversed(image.size)
        return Header(
            width=width,
            height=height,
            grey=image.mode in GREY_MODES,
            turned=turn != UPRIGHT or (image.format == "TIFF" and image.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT),
            alpha=image.has_transparency_data,
            animated=bool(getattr(image, "is_animated", False)),
            deep=image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())),
        )


def read_pixels(path: Path, *, channels: int, size: int | None) -> Tensor:
    """Decodes a file to (C, H, W) uint8. Call it inside `pillow_warnings`.

    channels: 1 (luminance) or 3 (RGB). The EXIF orientation is applied. Transparent pixels are laid over white. 16-bit
    channels keep their upper 8 bits. Of an animation, the first frame is read.
    size: the shorter side is scaled to it (bilinear, antialiased) and the centre is cropped; None keeps the file's
    size.
    Raises DataError, naming the file, if the file is damaged or too large to be decoded safely.
    """
    from PIL import Image

    with _opened(path) as image, _decoding.take(image.width * image.height * BYTES_PER_PIXEL):
        turn = orientation(image)
        if image.format == "TIFF":
            image.filename = ""  # type: ignore[attr-defined]  # else Pillow maps the file, and garbles a turned image
        converted = _convert(image, channels, path)
        if turn != UPRIGHT:
            converted = converted.transpose(Image.Transpose[TURNS[turn]])
        return scaled(converted, size)


def scaled(image: "Image.Image", size: int | None) -> Tensor:
    """Returns the pixels of an image, (C, H, W) uint8. size: as in `read_pixels`."""
    from PIL import Image, ImageOps

    if size is not None and image.size != (size, size):
        # The same as scaling and then cropping, without computing the pixels that would be cropped away.
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def check_image_size(size: int | None) -> None:
    """Raises ConfigError for a size that no image can be scaled to."""
    if size is not None and not 1 <= size <= SIDE:
        bound = "at least 1" if size < 1 else f"at most {SIDE}"
        raise ConfigError(f"data.image_size must be {bound}, got {size}", fix="set data.image_size=32")


def orientation(image: "Image.Image") -> int:
    """Returns the EXIF orientation that is left to apply, 1 to 8; 1 (upright) if there is none or it cannot be read.

    Pillow itself applies the orientation of TIFF files. Call this before the pixels are loaded. The EXIF data of a PNG
    that come after its pixels are ignored, because Pillow would decode all pixels to read them.
    """
    late = image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys()
    if late or image.format == "TIFF":
        return UPRIGHT
    try:
        turn = image.getexif().get(ORIENTATION, UPRIGHT)
    except Exception:  # Pillow raises errors of any type for damaged metadata; the pixels may still be fine
        return UPRIGHT
    return turn if turn in TURNS else UPRIGHT


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Turns Pillow's warning of a decompression bomb into an error, and silences its warnings about odd metadata.

    Use it around the thread pool, not in the threads: the filters of `warnings` belong to the whole process.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


class Share:
    """An amount of memory that threads take parts of. A thread waits until enough is left."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = size
        self._returned = threading.Condition()

    @contextmanager
    def take(self, part: int) -> Iterator[None]:
        part = min(part, self._size)  # a part larger than the whole waits for the whole
        with self._returned:
            while part > self._left:
                self._returned.wait()
            self._left -= part
        try:
            yield
        finally:
            with self._returned:
                self._left += part
                self._returned.notify_all()


_decoding = Share(MEMORY)


@contextmanager
def _opened(path: Path) -> "Iterator[Image.Image]":
    from PIL import Image, UnidentifiedImageError

    try:
        with regular_file.opened(path) as stream, Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height}, expected at most {PIXELS} in all")
            yield image
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} has too many pixels to decode safely ({error})",
            fix="scale it down, or remove it; data.damaged=skip leaves such files out",
        ) from error
    except OSError as error:
        reason = "damaged, or none of the formats that are read" if isinstance(error, UnidentifiedImageError) else None
        raise DataError(
            f"{path} cannot be read as an image ({reason or error.strerror or ' '.join(str(error).split())})",
            fix="repair it, or remove it; data.damaged=skip leaves such files out",
        ) from error
    # Pillow's decoders raise many types of error for a damaged file: OSError, SyntaxError, struct.error, IndexError ...
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as an image ({' '.join(str(error).split())})",
            fix="repair it, or remove it; data.damaged=skip leaves such files out",
        ) from error


def _convert(image: "Image.Image", channels: int, path: Path) -> "Image.Image":
    from PIL import Image

    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise DataError(f"{path} has floating-point pixels", fix="convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion of "I" clips at 255: a 16-bit image would be all white
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 0xFFFF:
            raise DataError(f"{path} has more than 16 bits a pixel", fix="convert it to 8 or 16 bits")
        return Image.fromarray((deep >> 8).astype(np.uint8)).convert(mode)
    if image.has_transparency_data:
        over_white = Image.new(mode, image.size)
        # A few rows at a time: a whole RGBA image would take twice the memory of everything else.
        rows = max(1, STRIP // image.width)
        image.load()
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
            white = Image.new("RGBA", strip.size, "white")
            over_white.paste(Image.alpha_composite(white, strip).convert(mode), (0, top))
        return over_white
    return image.convert(mode)
