"""Reading one image file with Pillow: its header, and its pixels as a tensor of the wanted shape."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nas.errors import DataError

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
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels are decoded."""

    width: int
    height: int
    grey: bool


def read_header(path: Path) -> Header:
    """Raises DataError, naming the file, if Pillow cannot identify it. Call it inside `pillow_warnings`."""
    with _opened(path) as image:
        return Header(width=image.width, height=image.height, grey=image.mode in GREY_MODES)


def read_pixels(path: Path, *, channels: int, size: int | None) -> Tensor:
    """Decode a file to (C, H, W) uint8. Call it inside `pillow_warnings`.

    channels: 1 (luminance) or 3 (RGB). Transparency is laid over white; 16-bit greys keep their upper 8 bits; of an
    animation the first frame is taken; the EXIF orientation is not applied (torchvision does not either).
    size: scale the shorter side to it (bilinear, antialiased) and crop the centre; None keeps the size of the file.
    Raises DataError, naming the file, if it is damaged or too large to be decoded safely.
    """
    from PIL import Image, ImageOps

    with _opened(path) as image:
        converted = _convert(image, channels)
        if size is not None and converted.size != (size, size):
            # The same as scaling and then cropping, without computing the pixels that would be cropped away.
            converted = ImageOps.fit(converted, (size, size), method=Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(converted))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Turn Pillow's warning of a decompression bomb into an error, and silence what it says of odd metadata.

    Around the thread pool, not in the threads: the filters of `warnings` belong to the whole process.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _opened(path: Path) -> "Iterator[Image.Image]":
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} has too many pixels to decode safely ({error})",
            fix="scale it down, or remove it; data.damaged=skip leaves such files out",
        ) from error
    # Pillow's decoders raise whatever they meet in a damaged file: OSError, SyntaxError, struct.error, IndexError ...
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as an image ({' '.join(str(error).split())})",
            fix="repair it, or remove it; data.damaged=skip leaves such files out",
        ) from error


def _convert(image: "Image.Image", channels: int) -> "Image.Image":
    from PIL import Image

    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise DataError(f"{image.filename} has floating-point pixels", fix="convert it to 8 or 16 bits")  # type: ignore[attr-defined]
    if image.mode.startswith("I"):  # Pillow's own conversion of "I" clips at 255: a 16-bit image would be all white
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 0xFFFF:
            raise DataError(f"{image.filename} has more than 16 bits a pixel", fix="convert it to 8 or 16 bits")  # type: ignore[attr-defined]
        return Image.fromarray((deep >> 8).astype(np.uint8)).convert(mode)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert(mode)
