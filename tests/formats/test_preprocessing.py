from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas.data.image_file import pillow_warnings, read_pixels
from nas.data.spec import DataSpec, ImageSpec
from nas.formats.preprocessing import preprocessing, sentences


def spec(channels: int, **fields: Any) -> ImageSpec:
    mean, std = ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3)) if channels == 3 else ((0.4,), (0.2,))
    return ImageSpec(name="d", input_shapes=((channels, 6, 6),), class_names=("a", "b"), mean=mean, std=std, **fields)


def image(kind: str) -> Image.Image:
    random = np.random.default_rng(0)
    if kind == "deep":
        return Image.fromarray(random.integers(0, 65536, (12, 16), dtype=np.uint16))
    modes = {"turned": "RGB", "grey": "L", "alpha": "RGBA", "palette": "RGB"}
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[modes[kind]]
    made = Image.fromarray(random.integers(0, 256, (12, 16, *channels), dtype=np.uint8))
    return made.convert("P") if kind == "palette" else made


@pytest.mark.parametrize("kind", ["turned", "grey", "deep", "alpha", "palette"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [None, 6])
def test_the_code_on_the_card_makes_the_input_of_the_training(
    kind: str, channels: int, side: int | None, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image(kind).save(path := tmp_path / "i.png", **({"exif": exif} if kind == "turned" else {}))
    made = spec(channels, from_files=True, image_size=side)
    fields = preprocessing(made)
    assert fields is not None
    scope: dict[str, Any] = {}
    exec(fields["code"], scope)
    with pillow_warnings():
        pixels = read_pixels(path, channels=channels, size=side).numpy() / 255
    mean, std = (np.array(values)[:, None, None] for values in (made.mean, made.std))
    x = scope["read"](path)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[0], (pixels - mean) / std, atol=1e-5)


@pytest.mark.parametrize("kind", ["deep", "grey"])
def test_the_code_on_the_card_reads_a_turned_tiff(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image(kind).save(path := tmp_path / "i.tif", exif=exif)
    fields = preprocessing(spec(1, from_files=True))
    assert fields is not None
    scope: dict[str, Any] = {}
    exec(fields["code"], scope)
    with pillow_warnings():
        pixels = read_pixels(path, channels=1, size=None).numpy() / 255
    np.testing.assert_allclose(scope["read"](path)[0], (pixels - 0.4) / 0.2, atol=1e-5)


def test_what_the_card_says() -> None:
    fields = preprocessing(spec(3, from_files=True, image_size=24))
    assert fields is not None
    text = " ".join(sentences(fields))
    for word in (
        "red, green, blue (RGB)",
        "shorter side scaled to 24, bilinear",
        "cropped to 24x24",
        "over white",
        "EXIF",
    ):
        assert word in text
    assert fields["channel_order"] == "RGB"
    assert fields["resize"] == {"shorter_side": 24, "filter": "bilinear, antialiased (Pillow)"}
    plain = preprocessing(spec(1))
    assert plain is not None
    assert "read(" not in plain["code"]
    assert "one, grey" in " ".join(sentences(plain))


def test_what_is_no_image_has_none() -> None:
    assert preprocessing(DataSpec(name="d", input_shapes=((4,),))) is None
