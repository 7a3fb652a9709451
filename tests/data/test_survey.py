from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nas.data.image_folder import ImageFolder
from nas.data.split import TensorSplit
from nas.data.survey import copied_files, copied_pixels, facts, lines, printable, warnings


def save(path: Path, seed: int, *, shape: tuple[int, ...] = (6, 8, 3), kind: Any = np.uint8, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    Image.fromarray(random.integers(0, np.iinfo(kind).max, shape, dtype=kind)).save(path, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of two classes of names alike, in three splits, with one of everything that there is to be said of files."""
    turned = Image.Exif()
    turned[0x0112] = 6
    save(tmp_path / "d/train/cat/turned.jpg", 0, exif=turned)
    save(tmp_path / "d/train/cat/alpha.png", 1, shape=(6, 6, 4))
    save(tmp_path / "d/train/Cat/deep/deep.png", 2, shape=(20, 10), kind=np.uint16)
    save(tmp_path / "d/val/cat/1.png", 3)
    save(tmp_path / "d/test/cat/copy.png", 3)
    save(tmp_path / "d/test/Cat/1.png", 4)
    save(tmp_path / "d/other/x/1.png", 5)
    for name in ("train/cat/1.heic", "test/Cat/2.HEIC", "test/Cat/scan"):
        (tmp_path / "d" / name).touch()
    return tmp_path / "d"


def test_all_that_is_said_of_a_folder(root: Path) -> None:
    known = facts(ImageFolder(root=str(root), image_size=4).load())
    assert list(lines(known)) == [
        "d: 2 classes, 4 images for training (train/ 3, val/ 1), 2 for the final score (test/); 1 to 3 of a class",
        "  6x6 to 10x20 pixels (width x height), read as colour, scaled and cropped to 4x4; 1 turned upright by their "
        "EXIF orientation; 1 with transparency, laid over white; 1 of 16 bits a channel, of which the upper 8 are "
        "kept; 1 grey",
        "  passed over: 3 other files (.heic 2, without extension 1)",
        "  not used: other",
        "  the images of val are for training; a search takes the images for the architecture out of the training "
        "images; the test images are for the final score only",
    ]
    alike, nested, copies = warnings(known)
    assert alike == "the class names Cat, cat differ only in case, spaces or forms of letters, but are of two classes"
    assert nested.startswith("the images of Cat lie in folders of their own (deep), which are not classes")
    assert copies.startswith("1 of the 2 test images is an exact copy of training images, e.g. ")
    assert known["per_class"] == {"train": {"Cat": 1, "cat": 3}, "test": {"Cat": 1, "cat": 1}}


def test_frames_classes_without_images_and_names_that_look_alike(tmp_path: Path) -> None:
    for number, name in enumerate(("train/fish", "train/\ufb01sh ", "test/fish")):
        save(tmp_path / name / "1.png", number)
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    for name in ("moving.gif", "pages.tif", "moving.png"):
        frames[0].save(tmp_path / "train/fish" / name, save_all=True, append_images=frames[1:])
    known = facts(ImageFolder(root=str(tmp_path), image_size=6).load())
    assert "; 3 of several frames or pages, of which the first is read" in list(lines(known))[1]
    assert list(warnings(known)) == [
        "the class names fish, \ufb01sh  differ only in case, spaces or forms of letters, but are of two classes",
        "no test images for 1 of the 2 classes: \ufb01sh ",
    ]


def test_held_out_images_and_images_to_score(tmp_path: Path) -> None:
    for name in "ab":
        for number in range(5):
            save(tmp_path / "d" / name / f"{number}.png", number + 10 * (name == "a"))
    folder = ImageFolder(root=str(tmp_path / "d"))
    bundle = folder.load()
    said = "d: 2 classes, 8 images for training, 2 held out of them for the final score; 4 of each class"
    assert next(lines(facts(bundle))) == said
    scored, seen = folder.to_score(bundle.spec, sample=bundle.sample)
    assert seen == 8
    assert next(lines(facts(scored, scored=True))) == "d: 2 classes, 10 images to score; 5 of each class"
    assert folder.is_trained_on(bundle.trained_on or "")
    assert not ImageFolder(root=str(tmp_path / "d"), test_fraction=0.4).is_trained_on(bundle.trained_on or "")


def test_copies_are_counted_to_the_last_pixel() -> None:
    train = torch.arange(5 * 3 * 4, dtype=torch.uint8).view(5, 3, 2, 2)
    test = torch.stack([train[3], train[1] + 100, train[3], train[4]])
    test[3, 2, 1, 1] += 1
    splits = [TensorSplit(images, torch.zeros(len(images))) for images in (train, test)]
    assert copied_pixels(*splits) == {"copies": 2}
    assert copied_pixels(splits[0], TensorSplit(test[1:2], torch.zeros(1))) == {"copies": 0}


def test_copies_of_files_are_looked_for_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c", "d")]
    for path, content in zip(paths, (b"12", b"34", b"12", b"56"), strict=True):
        path.write_bytes(content)
    expected = {"copies": 1, "copy": [str(paths[2]), str(paths[0])]}
    assert copied_files(paths[:2], paths[2:]) == expected
    monkeypatch.setattr("nas.data.survey.COMPARED_FILES", 3)
    assert copied_files(paths[:2], paths[2:]) == {"copies": None}


def test_names_are_made_fit_to_be_printed() -> None:
    assert printable("B\xe4r [x]") == "B\xe4r [x]"
    assert printable("\x1b[2J\n\udce9") == "\\x1b[2J\\n\\udce9"
