"""Which files of a directory are images of which class, and which of them are for testing."""

import hashlib
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nas.data.image_file import EXTENSIONS
from nas.data.stratify import hold_out
from nas.errors import DataError

SAMPLED = 1024  # files whose contents tell whether a network has seen some of them
SHOWN = 10  # names that a message lists
NO_EXTENSION = "without extension"
SAID = {"train": "training", "test": "the final score", "validation": "validation"}

# What a folder of a split may be called, in any case of letters.
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}


@dataclass(frozen=True)
class Listing:
    """The files of one split. labels: (N,) int64."""

    paths: tuple[Path, ...]
    labels: Tensor

    def digest(self, root: Path) -> str:
        """Equal for the same files in the same order, wherever `root` lies."""
        names = "\n".join(path.relative_to(root).as_posix() for path in self.paths)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()

    def sample(self) -> tuple[str, ...]:
        """SHA-256, cut to 16 letters, of the contents of at most SAMPLED evenly spaced files."""
        step = max(1, -(-len(self.paths) // SAMPLED))
        return tuple(map(digest_of_file, self.paths[::step]))

    def subset(self, indices: Tensor) -> "Listing":
        return Listing(paths=tuple(self.paths[index] for index in indices.tolist()), labels=self.labels[indices])


@dataclass
class Account:
    """What of a root is in which split, and what is in none of them.

    train_from, test_from: folder -> number of images; the root itself is ``.``.
    passed_over: extension -> number of other files in the class folders. beside: images that lie beside the class
    folders. unused: folders beside those of the splits. nested: class -> the folders in its own that hold its images.
    """

    train_from: dict[str, int] = field(default_factory=dict)
    test_from: dict[str, int] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    beside: int = 0
    unused: list[str] = field(default_factory=list)
    nested: dict[str, list[str]] = field(default_factory=dict)


class Found(NamedTuple):
    """held_out: whether the test split was taken out of the files that `train` has the rest of."""

    train: Listing
    test: Listing
    class_names: tuple[str, ...]
    held_out: bool
    account: Account


def find_images(root: Path, *, test_fraction: float | None) -> Found:
    """The images of `root/train/<class>/*` + `root/test/<class>/*`, or of `root/<class>/*`.

    `training`, and `testing`, are other names for them. `val`, `valid` or `validation` stands in for `test` where there
    is none; beside a `test` folder its images are for training, out of which a search takes those for the architecture:
    nothing here chooses by them, and the test images are for the final score only. Without either of them,
    `test_fraction` of every class is held out; None: nothing. Raises DataError if the folders are not as described.
    """
    splits = _splits(root)
    account = Account()
    if "train" not in splits:
        _refuse_splits(root, splits)
    train_root = splits.get("train", root)
    by_class = _images_by_class(train_root, account)
    if len(by_class) < 2:
        raise DataError(
            f"{train_root} has {len(by_class)} class folders ({', '.join(by_class) or 'none'}), expected at least 2",
            fix=f"put the images into {train_root}/<class>/, one folder a class",
        )
    names = tuple(by_class)
    _refuse_alike(train_root, names)
    train = _listing(by_class, names)
    account.train_from[_relative(train_root, root)] = len(train.paths)
    if train_root != root:
        used = set(splits.values())
        account.unused = [folder.name for folder in _folders(root) if folder not in used]

    test_root = splits.get("test", splits.get("validation")) if train_root != root else None
    if "test" in splits and (extra := splits.get("validation")) is not None:
        more = _listing(_known(_images_by_class(extra, account), names, extra, train_root), names)
        account.train_from[_relative(extra, root)] = len(more.paths)
        train = Listing(train.paths + more.paths, torch.cat([train.labels, more.labels]))
    if test_root is None:
        everything = torch.arange(len(train.paths))
        kept, taken = (
            (everything, everything[:0])
            if test_fraction is None
            else hold_out(train.labels, test_fraction=test_fraction)
        )
        account.train_from = {_relative(train_root, root): len(kept)}
        account.test_from = {_relative(train_root, root): len(taken)}
        return Found(train.subset(kept), train.subset(taken), names, held_out=True, account=account)
    test = _listing(_known(_images_by_class(test_root, account), names, test_root, train_root), names)
    account.test_from[_relative(test_root, root)] = len(test.paths)
    return Found(train, test, names, held_out=False, account=account)


def find_training(root: Path) -> Found:
    """All images of a root that are for training, and no others: those of its `train` folder, see `find_images`, or of
    `root/<class>/*` where there are no splits. Raises DataError if the folders are not as described."""
    found = find_images(root, test_fraction=None)
    nothing = found.train.subset(torch.arange(0))
    found.account.test_from.clear()
    return found._replace(test=nothing, held_out=False)


def find_to_score(root: Path, *, class_names: tuple[str, ...]) -> tuple[Listing, Account]:
    """All labelled images of a root that a network of these classes is to be scored on, of some of the classes at
    least: those of its `test` folder; of its `val` folder, or else of its `train` folder, if there is no other; those
    of `root/<class>/*` where there are no splits. Raises DataError if the folders are not as described."""
    splits = _splits(root)
    account = Account()
    chosen = splits.get("test", splits.get("validation", splits.get("train", root)))
    if chosen != root and "train" not in splits:
        _refuse_mixed(root, splits)
    by_class = _known(_images_by_class(chosen, account), class_names, chosen, None)
    listing = _listing(by_class, class_names)
    account.test_from[_relative(chosen, root)] = len(listing.paths)
    if chosen != root:
        account.unused = [folder.name for folder in _folders(root) if folder != chosen]
    return listing, account


def digest_of_file(path: Path) -> str:
    """Of the contents. Raises DataError if the file cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", fix="repair it, or remove it") from error


def _splits(root: Path) -> dict[str, Path]:
    """Split -> its folder. Raises DataError if there is no folder, or several for one split."""
    if not root.exists():
        raise DataError(f"data.root {root} does not exist", fix="set data.root to the folder with the images")
    if not root.is_dir():
        raise DataError(
            f"data.root {root} is a file, expected a folder", fix="unpack it, and set data.root to the folder"
        )
    named: dict[str, list[Path]] = {}
    for folder in _folders(root):
        if (split := SPLITS.get(folder.name.casefold())) is not None:
            named.setdefault(split, []).append(folder)
    # A folder called "train" that holds images and no folders is a class: a data set of vehicles has one.
    if not any(map(_folders, named.get("train", []))):
        named = {split: [folder for folder in folders if _folders(folder)] for split, folders in named.items()}
    for split, folders in named.items():
        if len(folders) > 1:
            raise DataError(
                f"{' and '.join(map(str, folders))} are both for {SAID[split]}, expected one folder",
                fix="put the images of both into one of them, or move the other elsewhere",
            )
    return {split: folders[0] for split, folders in named.items() if folders}


def _relative(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix()


def _known(
    by_class: dict[str, list[Path]], names: tuple[str, ...], folder: Path, train_root: Path | None
) -> dict[str, list[Path]]:
    """The same under the names of the classes in training, from which a folder's may differ in its Unicode form: the
    systems that folders are copied between do not agree on one. train_root: where those names are from, for messages;
    None: the training of a network. Raises DataError for other classes."""
    if not by_class:
        raise DataError(f"{folder} has no class folders", fix=f"put the images into {folder}/<class>/, or remove it")
    _refuse_alike(folder, tuple(by_class))
    same = {composed(name): name for name in names}
    unknown = sorted(name for name in by_class if name not in names and composed(name) not in same)
    if unknown:
        cases = {composed(name).casefold(): name for name in names}
        meant = [f"{name} for {cases[key]}" for name in unknown if (key := composed(name).casefold()) in cases]
        hint = f" ({', '.join(meant)}, which differ in case)" if meant else ""
        if train_root is None:
            raise DataError(
                f"{folder} has classes that the network was not trained on: {', '.join(unknown)}{hint}, expected some "
                f"of {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}",
                fix="name the class folders as in training; some may be missing",
            )
        raise DataError(
            f"{folder} has classes that {train_root} does not have: {', '.join(unknown)}{hint}",
            fix="give both the same class folders; this folder may lack some",
        )
    return {name if name in names else same[composed(name)]: paths for name, paths in by_class.items()}


def composed(name: str) -> str:
    """The Unicode form in which names that look alike are equal."""
    return unicodedata.normalize("NFC", name)


def _refuse_alike(folder: Path, names: tuple[str, ...]) -> None:
    """Raises DataError for two class folders whose names a person cannot tell apart."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(composed(name), name)) != name:
            raise DataError(
                f"{folder} has two class folders {composed(name)!r} that differ only in the Unicode form of their "
                f"names ({other!a} and {name!a}), expected one folder a class",
                fix="put the images of both into one of them",
            )


def _listing(by_class: dict[str, list[Path]], names: tuple[str, ...]) -> Listing:
    labels = {name: label for label, name in enumerate(names)}
    pairs = [(path, labels[name]) for name, paths in by_class.items() for path in paths]
    return Listing(
        paths=tuple(path for path, _ in pairs), labels=torch.tensor([label for _, label in pairs], dtype=torch.long)
    )


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _refuse_splits(root: Path, splits: dict[str, Path]) -> None:
    """Raises DataError for a folder of a split where there is none to train on."""
    if found := [str(folder) for folder in splits.values()]:
        raise DataError(
            f"{' and '.join(found)} would be {'classes' if len(found) > 1 else 'a class'}, as there is no folder of "
            "images for training beside it",
            fix=f"put the images for training into {root / 'train'}/<class>/, those for testing into "
            f"{root / 'test'}/<class>/",
        )


def _refuse_mixed(root: Path, splits: dict[str, Path]) -> None:
    """Raises DataError for a root that has classes of images beside the folder of a split: which are meant?"""
    used = set(splits.values())
    counted = Account()
    if beside := [folder.name for folder in _folders(root) if folder not in used and _images_under(folder, counted)]:
        raise DataError(
            f"{root} has the folder of a split, {', '.join(map(str, used))}, and folders of images beside it "
            f"({', '.join(beside[:SHOWN])}), expected either",
            fix="set data.root=... to the folder that holds the class folders to score",
        )


def _images_by_class(parent: Path, account: Account) -> dict[str, list[Path]]:
    account.beside += sum(_is_image(path.name) and path.is_file() for path in parent.iterdir())
    by_class: dict[str, list[Path]] = {}
    for folder in _folders(parent):
        name = folder.name
        if any("\ud800" <= character <= "\udfff" for character in name):  # what Python reads other bytes as
            raise DataError(f"the name of class folder {str(folder)!r} is not UTF-8", fix="rename it")
        by_class[name] = paths = _images_under(folder, account)
        if not paths:
            raise DataError(
                f"class folder {folder} has no images ({' '.join(sorted(EXTENSIONS))}){_instead(folder)}",
                fix="add images to it, or remove it",
            )
        inner = sorted({path.relative_to(folder).parts[0] for path in paths if path.parent != folder})
        if inner:
            account.nested[name] = sorted({*account.nested.get(name, []), *inner})
    return by_class


def _instead(folder: Path) -> str:
    """Which other files a folder has, in words; empty if it has none."""
    counted = Account()
    _images_under(folder, counted)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counted.passed_over.most_common(3))
    return f", but {kinds}" if kinds else ""


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _images_under(folder: Path, account: Account) -> list[Path]:
    """Of all folders in it, too. What is no image is counted by extension, but for hidden files."""
    paths: list[Path] = []
    seen: set[str] = set()  # a link may lead back to where it lies
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if _is_image(name):
                paths.append(Path(parent, name))
            elif not name.startswith("."):
                account.passed_over[os.path.splitext(name)[1].lower() or NO_EXTENSION] += 1
    return sorted(paths)
