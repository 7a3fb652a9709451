"""Finds the images of a directory, their classes, and which of them are for testing."""

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
from nas.untrusted import regular_file

SAMPLED = 1024  # files whose digests a checkpoint keeps, to recognise training images
SHOWN = 10  # names that a message lists
NO_EXTENSION = "without extension"
PURPOSE = {"train": "training", "test": "the final score", "validation": "validation"}

# Folder name, in lower case -> split. Upper and lower case are equal.
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
    """The files of one split.

    labels: (N,) int64.
    """

    paths: tuple[Path, ...]
    labels: Tensor

    def digest(self, root: Path) -> str:
        """Returns a digest of the files' names in their order. It does not depend on where `root` lies."""
        names = "\n".join(path.relative_to(root).as_posix() for path in self.paths)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()

    def sample(self) -> tuple[str, ...]:
        """Returns the SHA-256 digests of at most SAMPLED evenly spaced files, each cut to 16 letters."""
        step = max(1, -(-len(self.paths) // SAMPLED))
        return tuple(map(digest_of_file, self.paths[::step]))

    def subset(self, indices: Tensor) -> "Listing":
        return Listing(paths=tuple(self.paths[index] for index in indices.tolist()), labels=self.labels[indices])


@dataclass
class Account:
    """Counts which images of a root are in which split, and what is in no split.

    train_from, test_from: folder -> number of images; the root itself is ``.``.
    passed_over: extension -> number of files in the class folders that are not images.
    beside: number of images beside the class folders.
    unused: folders beside the split folders.
    nested: class -> the folders inside its class folder that hold images.
    within: the real path that all folders must lie in; empty for any.
    """

    train_from: dict[str, int] = field(default_factory=dict)
    test_from: dict[str, int] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    beside: int = 0
    unused: list[str] = field(default_factory=list)
    nested: dict[str, list[str]] = field(default_factory=dict)
    within: str = ""


class Found(NamedTuple):
    """The images of a root in two splits.

    held_out: whether the test images were taken out of the images for training.
    """

    train: Listing
    test: Listing
    class_names: tuple[str, ...]
    held_out: bool
    account: Account


def find_images(root: Path, *, test_fraction: float | None, links: bool = False) -> Found:
    """Finds the images of `root/train/<class>/*` and `root/test/<class>/*`, or of `root/<class>/*`.

    `training` and `testing` are other names for these folders. `val`, `valid` or `validation` is the test folder if
    there is no `test`. If there is a `test` folder too, the validation images are for training: nothing here chooses by
    them, a search takes its images for the architecture out of the training images, and the test images are for the
    final score only. Without a test and a validation folder, `test_fraction` of every class is held out;
    None: nothing.
    links: whether folders may be links that lead out of the root. Raises DataError if the folders are not as described.
    """
    splits = _splits(root)
    account = Account(within="" if links else os.path.realpath(root))
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


def find_training(root: Path, *, links: bool = False) -> Found:
    """Finds the training images of a root and no others, with an empty test split: nothing is held out.

    These are the training images of `find_images`, or all of `root/<class>/*` without split folders. links: as in
    `find_images`. Raises DataError if the folders are not as described.
    """
    found = find_images(root, test_fraction=None, links=links)
    nothing = found.train.subset(torch.arange(0))
    found.account.test_from.clear()
    return found._replace(test=nothing, held_out=False)


def find_to_score(root: Path, *, class_names: tuple[str, ...], links: bool = False) -> tuple[Listing, Account]:
    """Finds all labelled images of a root to score a network on that was trained on the classes `class_names`.

    The images come from the `test` folder; without it from the `val` folder, or else from the `train` folder; without
    split folders from `root/<class>/*`. Some classes may be missing. links: as in `find_images`. Raises DataError if
    the folders are not as described.
    """
    splits = _splits(root)
    account = Account(within="" if links else os.path.realpath(root))
    chosen = splits.get("test", splits.get("validation", splits.get("train", root)))
    if chosen != root and "train" not in splits:
        _refuse_mixed(root, splits, Account(within=account.within))
    by_class = _known(_images_by_class(chosen, account), class_names, chosen, None)
    listing = _listing(by_class, class_names)
    account.test_from[_relative(chosen, root)] = len(listing.paths)
    if chosen != root:
        account.unused = [folder.name for folder in _folders(root) if folder != chosen]
    return listing, account


def digest_of_file(path: Path) -> str:
    """Returns a digest of the file's contents. Raises DataError if the file cannot be read."""
    try:
        with regular_file.opened(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", fix="repair it, or remove it") from error


def _splits(root: Path) -> dict[str, Path]:
    """Returns split -> its folder. Raises DataError if `root` is not a folder, or if one split has several folders."""
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
    # A folder "train" that holds images but no folders is a class, e.g. in a data set of vehicles.
    if not any(map(_folders, named.get("train", []))):
        named = {split: [folder for folder in folders if _folders(folder)] for split, folders in named.items()}
    for split, folders in named.items():
        if len(folders) > 1:
            raise DataError(
                f"{' and '.join(map(str, folders))} are both for {PURPOSE[split]}, expected one folder",
                fix="put the images of both into one of them, or move the other elsewhere",
            )
    return {split: folders[0] for split, folders in named.items() if folders}


def _relative(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix()


def _known(
    by_class: dict[str, list[Path]], names: tuple[str, ...], folder: Path, train_root: Path | None
) -> dict[str, list[Path]]:
    """Returns `by_class` with the class names of the training, `names`.

    The Unicode form of a name may differ, because systems that folders are copied between use different forms.
    train_root: the folder that `names` come from, for messages; None if they come from a trained network. Raises
    DataError if `by_class` has other classes.
    """
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
    """Returns the name in the Unicode form in which names that look alike are equal."""
    return unicodedata.normalize("NFC", name)


def _refuse_alike(folder: Path, names: tuple[str, ...]) -> None:
    """Raises DataError if the names of two class folders look the same."""
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
    """Returns the folders in a folder, but for hidden ones. Raises DataError for a link that leads nowhere."""
    if not parent.is_dir():
        return []
    for path in parent.iterdir():
        if path.is_symlink() and not path.exists() and not path.name.startswith(".") and not _is_image(path.name):
            raise DataError(
                f"{path} is a link to {os.readlink(path)}, which does not exist",
                fix="mount or restore what it leads to, or remove it",
            )
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _refuse_splits(root: Path, splits: dict[str, Path]) -> None:
    """Raises DataError if there is a test or validation folder, but no training folder."""
    if found := [str(folder) for folder in splits.values()]:
        raise DataError(
            f"{' and '.join(found)} would be {'classes' if len(found) > 1 else 'a class'}, as there is no folder of "
            "images for training beside it",
            fix=f"put the images for training into {root / 'train'}/<class>/, those for testing into "
            f"{root / 'test'}/<class>/",
        )


def _refuse_mixed(root: Path, splits: dict[str, Path], counted: Account) -> None:
    """Raises DataError if a root has class folders with images beside a split folder. Either could be meant."""
    used = set(splits.values())
    if beside := [folder.name for folder in _folders(root) if folder not in used and _images_under(folder, counted)]:
        raise DataError(
            f"{root} has the folder of a split, {', '.join(map(str, used))}, and folders of images beside it "
            f"({', '.join(beside[:SHOWN])}), expected one or the other",
            fix="set data.root=... to the folder that holds the class folders to score",
        )


def _images_by_class(parent: Path, account: Account) -> dict[str, list[Path]]:
    account.beside += sum(_is_image(path.name) and path.is_file() for path in parent.iterdir())
    by_class: dict[str, list[Path]] = {}
    for folder in _folders(parent):
        name = folder.name
        if any(
            "\ud800" <= character <= "\udfff" for character in name
        ):  # Python's substitutes for bytes that are not UTF-8
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
    """Returns the number and kind of the other files in a folder, as text; empty if there are none."""
    counted = Account()
    _images_under(folder, counted)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counted.passed_over.most_common(3))
    return f", but {kinds}" if kinds else ""


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _images_under(folder: Path, account: Account) -> list[Path]:
    """Returns the images of a folder and of all folders in it. Counts other files by extension, except hidden files."""
    paths: list[Path] = []
    seen: set[str] = set()  # a link may lead to a folder above it
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        if account.within and os.path.commonpath([real, account.within]) != account.within:
            # A stranger's folder may lead anywhere: to private images, or to a whole disk.
            raise DataError(
                f"{parent} is a link out of data.root, to {real}",
                fix="copy what is there, or follow such links: data.links=true",
            )
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if _is_image(name):
                paths.append(Path(parent, name))
            elif not name.startswith("."):
                account.passed_over[os.path.splitext(name)[1].lower() or NO_EXTENSION] += 1
    return sorted(paths)
