import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nas.data.bundle import DataBundle
from nas.data.image_folder import ImageFolder
from nas.data.split import StreamSplit, TensorSplit
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError

CPU = torch.device("cpu")


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of 6x4 colour images: 5 + 4 to train, 2 to test."""
    random = np.random.default_rng(0)
    for name, count in (("train/dog", 5), ("train/cat", 4), ("test/dog", 2)):
        for k in range(count):
            save(tmp_path / "pets" / name / f"{k}.png", random.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    return tmp_path / "pets"


def test_loads_in_memory(root: Path) -> None:
    bundle = ImageFolder(root=str(root), crop_padding=1).load()
    assert bundle.spec.name == "pets"
    assert bundle.spec.class_names == ("cat", "dog")
    assert bundle.spec.input_shape == (3, 4, 6)
    assert bundle.augment == Augment(crop_padding=1, flip=True)
    assert isinstance(bundle.train, TensorSplit)
    assert bundle.train.labels.tolist() == [0] * 4 + [1] * 5
    assert bundle.test.labels.tolist() == [1, 1]
    images, _ = next(bundle.train.batches([torch.arange(9)], device=CPU))
    files = [root / "train" / name / f"{k}.png" for name, count in (("cat", 4), ("dog", 5)) for k in range(count)]
    expected = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
    assert np.array_equal(images.numpy(), expected)
    assert bundle.spec.mean == pytest.approx((expected / 255).mean((0, 2, 3)))
    assert bundle.spec.std == pytest.approx((expected / 255).std((0, 2, 3)))


@pytest.mark.parametrize("workers", [0, 1])
def test_streams_the_same_images_if_they_do_not_fit(root: Path, workers: int) -> None:
    in_memory = ImageFolder(root=str(root)).load()
    streamed = ImageFolder(root=str(root), memory_limit_mb=0, workers=workers).load()
    assert isinstance(streamed.train, StreamSplit)
    assert streamed.spec == in_memory.spec
    order = [torch.tensor([8, 0, 3]), torch.tensor([1])]
    for a, b in zip(in_memory.train.batches(order, device=CPU), streamed.train.batches(order, device=CPU), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert torch.equal(streamed.test.labels, in_memory.test.labels)


@pytest.mark.parametrize(("most", "taken"), [(3, [0, 3, 6]), (5, [0, 2, 4, 6, 8])])
@pytest.mark.parametrize("memory", [1, 150])  # of an image's 72 bytes
def test_statistics_of_a_streamed_set_come_from_evenly_spaced_images(
    root: Path, monkeypatch: pytest.MonkeyPatch, most: int, taken: list[int], memory: int
) -> None:
    monkeypatch.setattr("nas.data.image_folder.STATISTICS_IMAGES", most)
    monkeypatch.setattr("nas.data.image_folder.STATISTICS_BYTES", memory)
    images, _ = next(ImageFolder(root=str(root)).load().train.batches([torch.tensor(taken)], device=CPU))
    spec = ImageFolder(root=str(root), memory_limit_mb=0).load().spec
    assert spec.mean == pytest.approx((images.double() / 255).mean((0, 2, 3)).tolist())


def test_grey_if_every_image_is_grey_and_colour_otherwise(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        save(tmp_path / f"{name}.png", np.full((3, 3), 100, dtype=np.uint8))
    bundle = ImageFolder(root=str(tmp_path), test_fraction=0.5).load()
    assert bundle.spec.input_shape == (1, 3, 3)
    assert bundle.spec.std == (1.0,)  # constant images
    assert ImageFolder(root=str(tmp_path), channels=3).load().spec.channels == 3
    save(tmp_path / "b/2.png", np.full((3, 3, 3), 100, dtype=np.uint8))
    assert ImageFolder(root=str(tmp_path)).load().spec.channels == 3
    assert ImageFolder(root=str(tmp_path), channels=1).load().spec.channels == 1


def test_different_sizes_need_an_image_size(root: Path) -> None:
    save(root / "test/dog/big.png", np.zeros((9, 7, 3), dtype=np.uint8))
    with pytest.raises(DataError) as caught:
        ImageFolder(root=str(root)).load()
    message = str(caught.value)
    assert "got 6x4" in message
    assert str(root / "train/cat/0.png") in message
    assert f"7x9 ({root / 'test/dog/big.png'})" in message
    assert "set data.image_size=32" in message
    for channels in (None, 1):
        assert ImageFolder(root=str(root), image_size=5, channels=channels).load().spec.input_shape[1:] == (5, 5)


def test_the_held_out_images_are_not_in_the_training_split(tmp_path: Path) -> None:
    for k in range(20):  # the brightness is the number of the image
        save(tmp_path / "ab"[k % 2] / f"{k:02d}.png", np.full((2, 2), k, dtype=np.uint8))
    bundle = ImageFolder(root=str(tmp_path), test_fraction=0.3).load()
    seen = []
    for split in (bundle.train, bundle.test):
        images, labels = next(split.batches([torch.arange(len(split))], device=CPU))
        numbers = images[:, 0, 0, 0].long()
        assert torch.equal(numbers % 2, labels)
        seen.append(set(numbers.tolist()))
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(20))
    assert len(seen[1]) == 6


@pytest.mark.parametrize("limit", [4096, 0])
def test_a_damaged_file_is_named(root: Path, limit: int) -> None:
    path = root / "train/dog/3.png"
    path.write_bytes(path.read_bytes()[:60])  # the header is whole, the pixels are cut off
    with pytest.raises(DataError, match=r"train/dog/3\.png cannot be read as an image"):
        ImageFolder(root=str(root), memory_limit_mb=limit).load()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_damaged_after_loading_is_named_by_the_stream(root: Path, workers: int) -> None:
    bundle = ImageFolder(root=str(root), memory_limit_mb=0, workers=workers).load()
    (root / "train/cat/1.png").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"train/cat/1\.png cannot be read as an image .*; repair it, or remove it; data\.damaged=skip leaves",
    ):
        list(bundle.train.batches([torch.arange(4)], device=CPU))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 2}, r"data\.channels must be 1, 3 or null, got 2; set data\.channels=null"),
        ({"image_size": 0}, r"data\.image_size must be at least 1, got 0; set data\.image_size=32"),
        ({"image_size": 10**6}, r"data\.image_size must be at most 8192, got 1000000"),
        ({"workers": 10**9}, r"data\.workers must be at most 1024, got 1000000000"),
        ({"workers": -1}, r"data\.workers must be >= 0, got -1; set data\.workers=0"),
        ({"memory_limit_mb": -5}, r"data\.memory_limit_mb must be >= 0, got -5"),
    ],
)
def test_wrong_settings_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageFolder(root="anywhere", **settings).load()


def test_a_wrong_test_fraction_is_an_error(root: Path) -> None:
    with pytest.raises(ConfigError, match="test_fraction must lie strictly between 0 and 1, got 0"):
        ImageFolder(root=str(root / "train"), test_fraction=0).load()


@pytest.mark.skipif(not os.environ.get("NAS_DATA"), reason="NAS_DATA does not name a folder with cifar10/unpack.py")
def test_real_cifar10(tmp_path: Path) -> None:
    unpack = Path(os.environ["NAS_DATA"], "cifar10", "unpack.py")
    subprocess.run([sys.executable, str(unpack), str(tmp_path), "--limit", "1000"], check=True, capture_output=True)
    bundle = ImageFolder(root=str(tmp_path)).load()
    assert (len(bundle.train), len(bundle.test)) == (1000, 200)
    assert bundle.spec.input_shape == (3, 32, 32)
    assert bundle.spec.class_names[0] == "airplane"
    assert bundle.spec.mean == pytest.approx((0.491, 0.482, 0.447), abs=0.02)  # published for all 50,000
    assert bundle.spec.std == pytest.approx((0.247, 0.243, 0.262), abs=0.02)


@pytest.mark.parametrize("memory_limit_mb", [0, 10])
def test_damaged_files_are_counted_and_named_if_that_is_what_is_asked_for(
    root: Path, capsys: pytest.CaptureFixture[str], memory_limit_mb: int
) -> None:
    whole = ImageFolder(root=str(root)).load()
    cut, empty = root / "train" / "cat" / "1.png", root / "train" / "dog" / "4.png"
    cut.write_bytes(cut.read_bytes()[:60])
    empty.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"[14]\.png cannot be read as an image .*; data\.damaged=skip leaves such files out"
    ):
        ImageFolder(root=str(root)).load()
    bundle = ImageFolder(root=str(root), damaged="skip", memory_limit_mb=memory_limit_mb, workers=0).load()
    told = capsys.readouterr().err
    assert told.startswith(f"warning: 2 of 9 train images are left out: {cut} cannot be read as an image (")
    assert f"; {empty} cannot be read as an image (" in told
    assert told.count("\n") == 1
    assert bundle.train.labels.tolist() == [0] * 3 + [1] * 4
    assert bundle.test.labels.tolist() == [1, 1]
    for index, original in ((0, 0), (1, 2), (6, 7)):
        (found, _), (expected, _) = (
            next(data.train.batches([torch.tensor([one])], device=CPU))
            for data, one in ((bundle, index), (whole, original))
        )
        assert torch.equal(found, expected)


def test_a_test_split_of_which_nothing_can_be_read(root: Path) -> None:
    for path in (root / "test" / "dog").iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"no test image can be read \(.*0\.png cannot be read as an image"):
        ImageFolder(root=str(root), damaged="skip").load()


@pytest.mark.parametrize("memory_limit_mb", [0, 10])
def test_images_that_show_nothing_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], memory_limit_mb: int
) -> None:
    random = np.random.default_rng(0)
    for name in ("a/1", "a/2", "b/1", "b/2"):  # of 8 bits in files of 16, of which the upper 8 are kept
        save(tmp_path / f"{name}.png", random.integers(0, 256, (4, 4), dtype=np.uint16))
    ImageFolder(root=str(tmp_path), test_fraction=0.5, memory_limit_mb=memory_limit_mb).load()
    told = capsys.readouterr().err
    assert told.startswith("warning: every pixel of the 2 training images has the value 0; of files with 16 bits")


@pytest.mark.parametrize("below", ["train", ""])
def test_what_is_trained_on_depends_on_all_images(root: Path, below: str) -> None:
    def loaded(where: Path) -> DataBundle:
        return ImageFolder(root=str(where / below)).load()

    before = loaded(root)
    assert before.held_out == (below == "train")  # without the test folder beside it
    moved = shutil.copytree(root, root.parent / "moved")
    assert loaded(moved).trained_on == before.trained_on
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "new.png")
    assert loaded(root).trained_on != before.trained_on


def test_a_class_of_which_nothing_can_be_read(root: Path) -> None:
    for path in (root / "train" / "cat").iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"no image of class cat can be read \(.*0\.png cannot be read as an image"):
        ImageFolder(root=str(root), damaged="skip").load()
    with pytest.raises(ConfigError, match=r"data\.damaged must be stop or skip, got 'never'"):
        ImageFolder(root=str(root), damaged="never").load()
