"""Describes how an image becomes the input of an exported network.

The model card has it as text and code, metadata.json as fields.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from nas.data.spec import DataSpec, ImageSpec

# Needs only numpy and Pillow. A test checks that it gives what the training read.
FROM_FILE = '''\
import numpy as np
from PIL import Image, ImageOps

def read(path):
    """A file -> x: float32 (1, {channels}, height, width), {order}."""
    with open(path, "rb") as stream:  # of a name Pillow maps the file, and garbles a turned TIFF
        image = ImageOps.exif_transpose(Image.open(stream))  # upright, if a camera was held sideways
    if image.mode.startswith("I"):  # 16 bits: the upper 8
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if image.has_transparency_data:  # laid over white
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("{mode}")
{fit}    return prepare(np.asarray(image))

'''
FIT = """\
    # The shorter side scaled to {side} (bilinear, antialiased), then the centre cropped.
    image = ImageOps.fit(image, ({side}, {side}), method=Image.Resampling.BILINEAR)
"""
FROM_PIXELS = '''\
import numpy as np

def prepare(pixels):
    """uint8 (height, width{last}), {order} -> x: float32 (1, {channels}, height, width)."""
    pixels = pixels.reshape(*pixels.shape[:2], {channels}).astype(np.float32) / 255
    x = (pixels - np.float32({mean})) / np.float32({std})
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])
'''


def preprocessing(spec: DataSpec) -> dict[str, Any] | None:
    """Returns the fields for images of 1 or 3 channels; None for anything else."""
    if not isinstance(spec, ImageSpec) or spec.channels not in (1, 3):
        return None
    grey, side = spec.channels == 1, spec.image_size
    order = "grey" if grey else "red, green, blue"
    words = {
        "channels": spec.channels,
        "order": order,
        "last": "" if grey else ", 3",
        "mode": "L" if grey else "RGB",
        "mean": list(spec.mean),
        "std": list(spec.std),
        "fit": "" if side is None else FIT.format(side=side),
    }
    fields: dict[str, Any] = {
        "layout": "NCHW",
        "channel_order": "grey" if grey else "RGB",
        "scale": "pixels / 255",
        "mean": list(spec.mean),
        "std": list(spec.std),
    }
    code = FROM_PIXELS.format(**words)
    if spec.from_files:
        fields |= {
            "orientation": "EXIF orientation applied",
            "transparency": "laid over white",
            "depth": "upper 8 bits of 16",
            "colours": "converted to L (luminance, ITU-R 601-2)" if grey else "converted to RGB",
            "resize": None if side is None else {"shorter_side": side, "filter": "bilinear, antialiased (Pillow)"},
            "crop": None if side is None else {"size": [side, side], "where": "centre"},
        }
        code += "\n" + FROM_FILE.format(**words)
    return {**fields, "code": code.rstrip() + "\n"}


def sentences(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yields the sentences that the card lists before the code."""
    grey = fields["channel_order"] == "grey"
    yield f"Channels: {'one, grey' if grey else 'three, in the order red, green, blue (RGB)'}."
    if "orientation" in fields:
        yield (
            f"Files: {fields['orientation']}; transparency {fields['transparency']}; of 16 bits a channel the upper 8; "
            f"{fields['colours']}."
        )
        if (size := fields["resize"]) is None:
            yield "Size: that of the file, neither scaled nor cropped."
        else:
            side = size["shorter_side"]
            yield f"Size: the shorter side scaled to {side}, {size['filter']}; the centre cropped to {side}x{side}."
    yield "Numbers: pixels from 0 to 255, divided by 255 first."
