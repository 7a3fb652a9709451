import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nas.data.image_file import EXTENSIONS, Header, pillow_warnings, read_header, read_pixels
from nas.errors import DataError


def save(path: Path, array: Any, mode: str | None = None) -> Path:
    Image.fromarray(np.asarray(array)).convert(mode).save(path)
    return path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(autouse=True)
def _pillow_warnings() -> Any:
    with pillow_warnings():
        yield


def test_colour_and_grey_pixels_come_out_as_they_are(tmp_path: Path) -> None:
    colour, grey = noise(4, 6, 3), noise(4, 6)
    got = read_pixels(save(tmp_path / "c.png", colour), channels=3, size=None)
    assert got.dtype == torch.uint8
    assert np.array_equal(got.numpy(), colour.transpose(2, 0, 1))
    path = save(tmp_path / "g.png", grey)
    assert np.array_equal(read_pixels(path, channels=1, size=None).numpy(), grey[None])
    assert np.array_equal(read_pixels(path, channels=3, size=None).numpy(), np.stack([grey] * 3))
    assert read_header(path) == Header(width=6, height=4, grey=True)
    assert not read_header(tmp_path / "c.png").grey


def test_transparent_pixels_are_white_whatever_colour_they_hide(tmp_path: Path) -> None:
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0] = (200, 0, 0, 255)
    rgba[1] = (0, 200, 0, 0)
    got = read_pixels(save(tmp_path / "a.png", rgba), channels=3, size=None)
    assert got[:, 0, 0].tolist() == [200, 0, 0]
    assert got[:, 1, 0].tolist() == [255, 255, 255]
    assert read_pixels(tmp_path / "a.png", channels=1, size=None)[0, 1, 0] == 255

    grey_alpha = Image.new("LA", (1, 1), (7, 0))
    grey_alpha.save(tmp_path / "la.png")
    assert read_header(tmp_path / "la.png").grey
    assert read_pixels(tmp_path / "la.png", channels=1, size=None).item() == 255


def test_palette_images_are_looked_up_and_not_read_as_indices(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png")
    assert not read_header(tmp_path / "p.png").grey
    assert read_pixels(tmp_path / "p.png", channels=3, size=None)[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 50]]
    palette.save(tmp_path / "t.png", transparency=b"\x00\xff")  # an alpha for each entry
    assert read_pixels(tmp_path / "t.png", channels=3, size=None)[:, 0].T.tolist() == [[255] * 3, [200, 100, 50]]


def test_16_bit_greys_keep_their_upper_byte(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16)).save(tmp_path / "d.png")
    assert read_header(tmp_path / "d.png").grey
    assert read_pixels(tmp_path / "d.png", channels=1, size=None).flatten().tolist() == [0, 1, 255]
    assert read_pixels(tmp_path / "d.png", channels=3, size=None)[:, 0, 2].tolist() == [255] * 3


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_deeper_pixels_are_an_error(tmp_path: Path, kind: Any) -> None:
    Image.fromarray(np.array([[0, 70000]], dtype=kind)).save(tmp_path / "d.tiff")
    with pytest.raises(DataError, match=r"d\.tiff has .*; convert it to 8 or 16 bits"):
        read_pixels(tmp_path / "d.tiff", channels=1, size=None)


def test_black_and_white_and_cmyk(tmp_path: Path) -> None:
    save(tmp_path / "b.png", np.array([[0, 255]], dtype=np.uint8), "1")
    assert read_pixels(tmp_path / "b.png", channels=1, size=None).flatten().tolist() == [0, 255]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    red, green, blue = read_pixels(tmp_path / "c.jpg", channels=3, size=None)[:, 4, 4].tolist()
    assert red > 200 > 60 > max(green, blue)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (10, 30), (40, 40)])
def test_size_scales_the_shorter_side_and_crops_the_centre(tmp_path: Path, height: int, width: int) -> None:
    # A brightness ramp over the longer side: its middle half, or whatever square, must be centred on grey.
    ramp = np.linspace(0, 255, max(height, width))
    array = np.broadcast_to(ramp if width >= height else ramp[:, None], (height, width)).astype(np.uint8)
    got = read_pixels(save(tmp_path / "r.png", array), channels=1, size=20)[0].float()
    assert got.shape == (20, 20)
    along = got.mean(0 if width >= height else 1)
    assert along.mean() == pytest.approx(127, abs=2)
    assert (along[-1] - along[0]).item() == pytest.approx(255 * min(height, width) / max(height, width), rel=0.12)
    assert got.std(0 if width >= height else 1).max() < 1


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = read_pixels(save(tmp_path / "b.png", board), channels=1, size=8)
    assert got.float().std() < 3


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.png", noise(32, 32, 3)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"cut\.png cannot be read as an image \(.*\); repair it, or remove it"):
        read_pixels(tmp_path / "cut.png", channels=3, size=None)
    for name in ("text.jpg", "empty.png"):
        with pytest.raises(DataError, match=f"{name} cannot be read as an image"):
            read_header(tmp_path / name)


@pytest.mark.parametrize("limit", [60, 20])  # Pillow warns above the limit, and raises above twice the limit
def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    path = save(tmp_path / "bomb.png", noise(10, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for read in (read_header, lambda bomb: read_pixels(bomb, channels=1, size=4)):
        with pytest.raises(DataError, match=r"bomb\.png has too many pixels to decode safely .*; scale it down"):
            read(path)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("kind", ["pixels", "text", "profile"])
def test_real_png_bombs_are_refused_before_they_unfold(tmp_path: Path, kind: str) -> None:
    """A header of 10^10 pixels, and 100 MB of text or colour profile in 100 kB."""
    side, huge = (100_000, b"") if kind == "pixels" else (4, zlib.compress(bytes(100_000_000), 9))
    extra = {"pixels": b"", "text": chunk(b"zTXt", b"a\0\0" + huge), "profile": chunk(b"iCCP", b"a\0\0" + huge)}[kind]
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        + extra
        + chunk(b"IDAT", zlib.compress(bytes(5 * 4)))
        + chunk(b"IEND", b"")
    )
    tracemalloc.start()
    try:
        pixels = read_pixels(path, channels=1, size=None)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017  Pillow leaves a profile that is too large out
    else:
        assert kind == "profile"
        assert pixels.shape == (1, 4, 4)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10_000_000


def test_pillow_opens_every_extension_that_is_looked_for() -> None:
    Image.init()
    formats = {extension: Image.registered_extensions().get(extension) for extension in EXTENSIONS - {".avif"}}
    assert all(name in Image.OPEN for name in formats.values()), formats


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff", "avif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path: Path, extension: str, turn: int) -> None:
    array = (np.arange(24, dtype=np.uint8) * 10).reshape(4, 6)
    upright = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.T,
        6: np.rot90(array, -1),
        7: np.rot90(array, 2).T,
        8: np.rot90(array),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    options: dict[str, Any] = {"jpg": {"quality": 100}, "avif": {"quality": 100}, "webp": {"lossless": True}}
    Image.fromarray(array).save(path := tmp_path / f"i.{extension}", exif=exif, **options.get(extension, {}))
    header, pixels = read_header(path), read_pixels(path, channels=1, size=None)[0].numpy()
    assert (header.height, header.width) == pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).max() < 8
    assert header.turned == (turn != 1)


def test_damaged_metadata_are_no_reason_to_refuse_an_image(tmp_path: Path) -> None:
    save(path := tmp_path / "i.jpg", noise(8, 8), "L")
    content = path.read_bytes()
    damaged = b"Exif\0\0MM\0*\xff\xff\xff\xff"
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(damaged) + 2) + damaged + content[2:])
    assert not read_header(path).turned
    assert read_pixels(path, channels=1, size=None).shape == (1, 8, 8)


@pytest.mark.parametrize("colour", [False, True])
def test_what_a_header_says_of_depth_and_transparency(tmp_path: Path, colour: bool) -> None:
    if colour:
        rows = b"".join(b"\0" + bytes(6 * 2) for _ in range(2))
        (tmp_path / "d.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b"")
        )
    else:
        Image.fromarray(np.zeros((2, 2), dtype=np.uint16)).save(tmp_path / "d.png")
    Image.new("LA", (2, 2)).save(tmp_path / "a.png")
    assert read_header(tmp_path / "d.png") == Header(width=2, height=2, grey=not colour, deep=True)
    assert read_header(tmp_path / "a.png") == Header(width=2, height=2, grey=True, alpha=True)
