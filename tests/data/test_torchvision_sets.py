"""Small data sets in the original file formats. torchvision checks MD5 sums: each test sets those of its files."""

import gzip
import hashlib
import os
import pickle
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas.data.image_file import read_pixels
from nas.data.spec import ImageSpec
from nas.data.torchvision_sets import SVHN, Cifar10, Cifar100, FashionMnist
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError

FAMILIES = [Cifar10, Cifar100, SVHN, FashionMnist]
NOWHERE = "http://127.0.0.1:9/"  # the discard port of this machine: refuses at once, without a network


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def random_pixels(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_cifar(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cls: Any, files: dict[str, int], names: list[str]
) -> dict[str, tuple[np.ndarray, list[int]]]:
    """files: images in each. Returns what was written, (n, 3, 32, 32) and labels, by file."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    label_key = "labels" if cls.meta["key"] == "label_names" else "fine_labels"
    for seed, (name, count) in enumerate(files.items()):
        pixels = random_pixels(count, 3072, seed=seed)
        labels = [(seed + k) % len(names) for k in range(count)]
        (folder / name).write_bytes(pickle.dumps({"data": pixels, label_key: labels}))
        written[name] = (pixels.reshape(count, 3, 32, 32), labels)
    meta = folder / cls.meta["filename"]
    meta.write_bytes(pickle.dumps({cls.meta["key"]: names}))
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5(meta)})
    for attribute in ("train_list", "test_list"):
        listed = [[name, md5(folder / name)] for name, _ in getattr(cls, attribute)]
        monkeypatch.setattr(cls, attribute, listed)
    return written


CIFAR10_FILES = {
    "data_batch_1": 4,
    "data_batch_2": 3,
    "data_batch_3": 2,
    "data_batch_4": 2,
    "data_batch_5": 2,
    "test_batch": 5,
}


def test_cifar10_is_read_from_its_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    names = [f"class {k}" for k in range(10)]
    written = write_cifar(tmp_path / "cifar-10-batches-py", monkeypatch, CIFAR10, CIFAR10_FILES, names)
    bundle = Cifar10(root=str(tmp_path)).load()
    assert bundle.spec.name == "cifar10"
    assert bundle.spec.input_shape == (3, 32, 32)
    assert bundle.spec.class_names == tuple(names)
    assert bundle.spec.mean == pytest.approx((0.4914, 0.4824, 0.4467), abs=1e-4)
    assert bundle.spec.std == pytest.approx((0.2471, 0.2435, 0.2616), abs=1e-4)
    assert bundle.augment == Augment(crop_padding=4, flip=True)
    assert (len(bundle.train), len(bundle.test)) == (13, 5)
    images, labels = next(bundle.test.batches([torch.arange(5)], device=torch.device("cpu")))
    assert np.array_equal(images.numpy(), written["test_batch"][0])
    assert labels.tolist() == written["test_batch"][1]
    images, labels = next(bundle.train.batches([torch.arange(4, 7)], device=torch.device("cpu")))
    assert np.array_equal(images.numpy(), written["data_batch_2"][0])
    assert labels.tolist() == written["data_batch_2"][1]


def test_images_are_scaled_as_image_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image
    from torchvision.datasets import CIFAR10

    written = write_cifar(tmp_path / "cifar-10-batches-py", monkeypatch, CIFAR10, CIFAR10_FILES, list("abcdefghij"))
    bundle = Cifar10(root=str(tmp_path), image_size=16).load()
    assert isinstance(bundle.spec, ImageSpec)
    assert (bundle.spec.input_shape, bundle.spec.image_size) == ((3, 16, 16), 16)
    images, _ = next(bundle.test.batches([torch.arange(5)], device=torch.device("cpu")))
    for number, pixels in enumerate(written["test_batch"][0]):
        path = tmp_path / "one.png"
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
        assert torch.equal(images[number], read_pixels(path, channels=3, size=16))
    with pytest.raises(ConfigError, match=r"data\.image_size must be at least 1, got 0"):
        Cifar10(root=str(tmp_path), image_size=0).load()


def test_cifar10_that_is_damaged_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, monkeypatch, CIFAR10, CIFAR10_FILES, ["a", "b"])
    (folder / "data_batch_3").write_bytes(b"cut short")
    with pytest.raises(DataError, match=r"is damaged: expected .*cifar-10-batches-py"):
        Cifar10(root=str(tmp_path)).load()


def test_cifar10_download_unpacks_an_archive_that_is_already_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from torchvision.datasets import CIFAR10

    write_cifar(tmp_path / "made" / "cifar-10-batches-py", monkeypatch, CIFAR10, CIFAR10_FILES, ["a", "b"])
    root = tmp_path / "root"
    root.mkdir()
    archive = root / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    assert len(Cifar10(root=str(root), download=True).load().train) == 13
    assert capfd.readouterr() == ("", "")


def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    names = [f"fine {k}" for k in range(100)]
    folder = tmp_path / "cifar-100-python"
    written = write_cifar(folder, monkeypatch, CIFAR100, {"train": 120, "test": 4}, names)
    bundle = Cifar100(root=str(tmp_path)).load()
    assert bundle.spec.name == "cifar100"
    assert bundle.spec.num_classes == 100
    assert bundle.spec.mean == pytest.approx((0.5071, 0.4867, 0.4408), abs=1e-4)
    assert bundle.spec.std == pytest.approx((0.2675, 0.2565, 0.2761), abs=1e-4)
    assert bundle.train.labels.tolist() == written["train"][1]
    images, _ = next(bundle.train.batches([torch.arange(120)], device=torch.device("cpu")))
    assert np.array_equal(images.numpy(), written["train"][0])


def test_svhn_is_read_from_its_mat_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision import datasets

    split_list = dict(datasets.SVHN.split_list)
    made = {}
    for seed, (split, count) in enumerate((("train", 21), ("test", 10))):
        pixels = random_pixels(32, 32, 3, count, seed=seed)
        digits = np.arange(count, dtype=np.uint8)[:, None] % 10 + 1  # 1..10, where 10 is the digit 0
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": pixels, "y": digits})
        split_list[split] = [NOWHERE, path.name, md5(path)]
        made[split] = pixels.transpose(3, 2, 0, 1)
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    bundle = SVHN(root=str(tmp_path)).load()
    assert bundle.spec.name == "svhn"
    assert bundle.spec.class_names == tuple("0123456789")
    assert bundle.augment == Augment(crop_padding=4, flip=False)
    images, labels = next(bundle.train.batches([torch.arange(21)], device=torch.device("cpu")))
    assert np.array_equal(images.numpy(), made["train"])
    assert labels.tolist() == [(k % 10 + 1) % 10 for k in range(21)]
    assert bundle.spec.mean == pytest.approx((made["train"] / 255).mean((0, 2, 3)))
    assert bundle.spec.std == pytest.approx((made["train"] / 255).std((0, 2, 3)))


def test_fashion_mnist_is_unpacked_from_its_idx_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    made = {}
    for seed, (split, count) in enumerate((("train", 20), ("t10k", 6))):
        pixels, labels = random_pixels(count, 28, 28, seed=seed), np.arange(count, dtype=np.uint8) % 10
        image_bytes = struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes()
        label_bytes = struct.pack(">2i", 2049, count) + labels.tobytes()
        (raw / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(image_bytes))
        (raw / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(label_bytes))
        made[split] = pixels
    monkeypatch.setattr(FashionMNIST, "mirrors", [NOWHERE])
    monkeypatch.setattr(FashionMNIST, "resources", [(name, md5(raw / name)) for name, _ in FashionMNIST.resources])

    bundle = FashionMnist(root=str(tmp_path), download=True).load()
    assert bundle.spec.name == "fashion_mnist"
    assert bundle.spec.input_shape == (1, 28, 28)
    assert bundle.spec.class_names[-1] == "Ankle boot"
    assert bundle.augment == Augment(crop_padding=2, flip=True)
    images, labels = next(bundle.train.batches([torch.arange(20)], device=torch.device("cpu")))
    assert np.array_equal(images[:, 0].numpy(), made["train"])
    assert labels.tolist() == [k % 10 for k in range(20)]
    assert bundle.spec.std == pytest.approx([(made["train"] / 255).std()])
    assert len(FashionMnist(root=str(tmp_path)).load().test) == 6  # once unpacked, no download is needed
    assert FashionMnist(root=str(tmp_path), image_size=14).load().spec.input_shapes == ((1, 14, 14),)  # grey images


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_files_name_the_root_and_the_fix(
    family: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "nothing here"
    with pytest.raises(DataError) as caught:
        family(root=str(root)).load()
    message = str(caught.value)
    assert f"is not in {root}" in message
    assert "data.download=true" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    assert not root.exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_download_without_a_network_says_where_the_files_go(
    family: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "url", NOWHERE)
    monkeypatch.setattr(datasets.CIFAR100, "url", NOWHERE)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [NOWHERE])
    svhn = {split: [NOWHERE, name, checksum] for split, (_, name, checksum) in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", svhn)
    with pytest.raises(DataError) as caught:
        family(root=str(tmp_path), download=True).load()
    message = str(caught.value)
    assert "could not download" in message
    assert "refused" in message
    assert f"or put the published files there as {tmp_path}" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_without_a_checksum_is_one_line(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\7\11" + bytes(12))
    with pytest.raises(DataError, match="or is damaged"):
        FashionMnist(root=str(tmp_path)).load()


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (Cifar10, "cifar-10-batches-py/data_batch_1"),
        (FashionMnist, "FashionMNIST/raw/train-images-idx3-ubyte"),
    ],
)
def test_a_pipe_in_place_of_a_file_is_one_line(tmp_path: Path, family: Any, name: str) -> None:
    """Reading a pipe that nobody writes to would never end."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name} is no regular file"):
        family(root=str(tmp_path)).load()


def test_a_torchvision_that_cannot_be_imported_is_not_told_as_a_damaged_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match="torchvision"):
        Cifar10(root=str(tmp_path)).load()
