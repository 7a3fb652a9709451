"""Which files of a directory are images of which class, and which of them are for testing."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nas.data.image_file import EXTENSIONS
from nas.data.stratify import hold_out
from nas.errors import DataError

TEST_FOLDERS = ("test", "val", "validation", "valid")
SPLIT_FOLDERS = frozenset({"train", "training", "testing", *TEST_FOLDERS})


@dataclass(frozen=True)
class Listing:
    """The files of one split. labels: (N,) int64."""

    paths: tuple[Path, ...]
    labels: Tensor

    def digest(self, root: Path) -> str:
        """Equal for the same files in the same order, wherever `root` lies."""
        names = "\n".join(path.relative_to(root).as_posix() for path in self.paths)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()

    def subset(self, indices: Tensor) -> "Listing":
        return Listing(paths=tuple(self.paths[index] for index in indices.tolist()), labels=self.labels[indices])


class Found(NamedTuple):
    """held_out: whether the test split was taken out of the files that `train` has the rest of."""

    train: Listing
    test: Listing
    class_names: tuple[str, ...]
    held_out: bool


def find_images(root: Path, *, test_fraction: float) -> Found:
    """The images of `root/train/<class>/*` + `root/test/<class>/*`, or of `root/<class>/*`.

    `val`, `validation` and `valid` stand in for `test`, in this order. Without any of them, `test_fraction` of every
    class is held out. Raises DataError if the folders are not as described.
    """
    if not root.exists():
        raise DataError(f"data.root {root} does not exist", fix="set data.root to the folder with the images")
    if not root.is_dir():
        raise DataError(
            f"data.root {root} is a file, expected a folder", fix="unpack it, and set data.root to the folder"
        )

    # A folder called "train" that holds images and no folders is a class: a data set of vehicles has one.
    train_root = root / "train" if _folders(root / "train") else root
    if train_root == root:
        _refuse_splits(root)
    train_classes = _images_by_class(train_root)
    if len(train_classes) < 2:
        raise DataError(
            f"{train_root} has {len(train_classes)} class folders ({', '.join(train_classes) or 'none'}), expected at"
            " least 2",
            fix=f"put the images into {train_root}/<class>/, one folder a class",
        )
    names = tuple(train_classes)
    train = _listing(train_classes, names)

    test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if train_root == root or test_root is None:
        held_in, held_out = hold_out(train.labels, test_fraction=test_fraction)
        return Found(train.subset(held_in), train.subset(held_out), names, held_out=True)

    test_classes = _images_by_class(test_root)
    if not test_classes:
        raise DataError(
            f"{test_root} has no class folders", fix=f"put the images into {test_root}/<class>/, or remove it"
        )
    if unknown := sorted(set(test_classes) - set(names)):
        raise DataError(
            f"{test_root} has classes that {train_root} does not have: {', '.join(unknown)}",
            fix="give both the same class folders; the test folder may lack some",
        )
    return Found(train, _listing(test_classes, names), names, held_out=False)


def _listing(by_class: dict[str, list[Path]], names: tuple[str, ...]) -> Listing:
    pairs = [(path, names.index(name)) for name, paths in by_class.items() for path in paths]
    return Listing(paths=tuple(path for path, _ in pairs), labels=torch.tensor([label for _, label in pairs]))


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _refuse_splits(root: Path) -> None:
    """Raises DataError for a folder among the classes that is called like a split, and holds folders as one does."""
    if found := [path for path in _folders(root) if path.name.casefold() in SPLIT_FOLDERS and _folders(path)]:
        raise DataError(
            f"{' and '.join(map(str, found))} would be {'classes' if len(found) > 1 else 'a class'}, expected the "
            "folders of the splits to be called train and test, in small letters",
            fix=f"put the images for training into {root / 'train'}/<class>/, those for testing into "
            f"{root / 'test'}/<class>/",
        )


def _images_by_class(parent: Path) -> dict[str, list[Path]]:
    by_class = {folder.name: _images_under(folder) for folder in _folders(parent)}
    for name, paths in by_class.items():
        if any("\ud800" <= character <= "\udfff" for character in name):  # what Python reads other bytes as
            raise DataError(f"the name of class folder {str(parent / name)!r} is not UTF-8", fix="rename it")
        if not paths:
            raise DataError(
                f"class folder {parent / name} has no images ({' '.join(sorted(EXTENSIONS))})",
                fix="add images to it, or remove it",
            )
    return by_class


def _images_under(folder: Path) -> list[Path]:
    paths: list[Path] = []
    seen: set[str] = set()  # a link may lead back to where it lies
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    return sorted(paths)
