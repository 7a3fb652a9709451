from pathlib import Path

import pytest

from nas.data.class_folders import find_images, find_to_score
from nas.errors import DataError


def make(root: Path, files: str) -> None:
    for name in files.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(root: Path, paths: tuple[Path, ...]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


@pytest.mark.parametrize("folder", ["test", "val", "validation", "valid"])
def test_train_and_test_folders(tmp_path: Path, folder: str) -> None:
    make(tmp_path, f"train/b/1.png train/a/2.JPG train/a/1.png {folder}/b/9.webp other/readme.txt")
    train, test, classes, held_out, _ = find_images(tmp_path, test_fraction=0.5)
    assert classes == ("a", "b")
    assert not held_out
    assert names(tmp_path, train.paths) == ["train/a/1.png", "train/a/2.JPG", "train/b/1.png"]
    assert train.labels.tolist() == [0, 0, 1]
    assert names(tmp_path, test.paths) == [f"{folder}/b/9.webp"]  # class a has no test images, and b is still 1
    assert test.labels.tolist() == [1]


@pytest.mark.parametrize("called", [("train", "val", "test"), ("Training", "Valid", "TESTING")])
def test_of_three_splits_the_validation_images_are_for_training(tmp_path: Path, called: tuple[str, str, str]) -> None:
    train, val, test = called
    make(tmp_path, f"{train}/a/1.png {train}/b/1.png {val}/a/2.png {test}/a/3.png {test}/b/4.png extra/a/5.png")
    found = find_images(tmp_path, test_fraction=0.5)
    assert names(tmp_path, found.train.paths) == [f"{train}/a/1.png", f"{train}/b/1.png", f"{val}/a/2.png"]
    assert found.train.labels.tolist() == [0, 1, 0]
    assert names(tmp_path, found.test.paths) == [f"{test}/a/3.png", f"{test}/b/4.png"]
    assert (found.account.train_from, found.account.test_from) == ({train: 2, val: 1}, {test: 2})
    assert found.account.unused == ["extra"]


def test_a_class_is_the_same_in_another_unicode_form(tmp_path: Path) -> None:
    make(tmp_path, "train/B\xe4r/1.png train/b/1.png test/Ba\u0308r/2.png")
    found = find_images(tmp_path, test_fraction=0.5)
    assert found.class_names == ("B\xe4r", "b")
    assert found.test.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("files", "scored", "labels"),
    [
        ("b/1.png c/2.png", ["b/1.png", "c/2.png"], [1, 2]),  # without a class, and numbered as in training
        ("test/a/1.png", ["test/a/1.png"], [0]),
        ("train/a/1.png Valid/b/2.png", ["Valid/b/2.png"], [1]),
        ("train/a/1.png val/b/2.png testing/c/3.png", ["testing/c/3.png"], [2]),
        ("train/a/1.png train/b/2.png", ["train/a/1.png", "train/b/2.png"], [0, 1]),
    ],
)
def test_all_images_of_a_folder_are_scored(tmp_path: Path, files: str, scored: list[str], labels: list[int]) -> None:
    make(tmp_path, files)
    listing, _ = find_to_score(tmp_path, class_names=("a", "b", "c"))
    assert (names(tmp_path, listing.paths), listing.labels.tolist()) == (scored, labels)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("a/1.png z/1.png A/1.png", r"has classes that the network was not trained on: A, z \(A for a, which differ"),
        ("1.png", r"has no class folders; put the images into .*/<class>/"),
        (
            "test/a/1.png b/2.png",
            r"has the folder of a split, .*/test, and folders of images beside it \(b\), expected",
        ),
    ],
)
def test_what_cannot_be_scored(tmp_path: Path, files: str, message: str) -> None:
    make(tmp_path, files)
    with pytest.raises(DataError, match=message):
        find_to_score(tmp_path, class_names=("a", "b"))


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png a/x.HEIC a/deep/2.png a/deep/y.heic a/.hidden b/1.png b/2.png b/scan top.png notes.txt")
    account = find_images(tmp_path, test_fraction=0.5).account
    assert account.passed_over == {".heic": 2, "without extension": 1}
    assert account.beside == 1
    assert account.nested == {"a": ["deep"]}
    assert (account.train_from, account.test_from) == ({".": 2}, {".": 2})


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_without_a_test_folder_images_are_held_out(tmp_path: Path, prefix: str) -> None:
    make(tmp_path, " ".join(f"{prefix}{name}/{k}.png" for name in "ab" for k in range(10)) + f" {prefix}c/only.png")
    train, test, classes, held_out, _ = find_images(tmp_path, test_fraction=0.2)
    assert classes == ("a", "b", "c")
    assert held_out
    assert not set(train.paths) & set(test.paths)
    assert (len(train.paths), len(test.paths)) == (17, 4)
    assert sorted(test.labels.tolist()) == [0, 0, 1, 1]
    for listing in (train, test):
        assert [path.parent.name for path in listing.paths] == [classes[label] for label in listing.labels]
    assert find_images(tmp_path, test_fraction=0.2)[1].paths == test.paths


def test_a_folder_of_images_called_train_is_a_class(tmp_path: Path) -> None:
    make(tmp_path, "train/1.png train/2.png car/1.png car/2.png")
    assert find_images(tmp_path, test_fraction=0.5)[2] == ("car", "train")


def test_what_is_no_image_is_passed_over_and_folders_are_searched(tmp_path: Path) -> None:
    make(tmp_path, "a/deep/down/1.png a/.hidden.png a/notes.txt a/.git/2.png b/1.tif b/Thumbs.db .cache/1.png top.png")
    make(tmp_path, "a/2.png b/2.tif")
    train, test, classes, *_ = find_images(tmp_path, test_fraction=0.5)
    assert classes == ("a", "b")
    assert sorted(names(tmp_path, train.paths + test.paths)) == ["a/2.png", "a/deep/down/1.png", "b/1.tif", "b/2.tif"]


def test_a_link_back_is_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png a/deep/2.png b/1.png b/2.png")
    (tmp_path / "a" / "deep" / "back").symlink_to(tmp_path / "a")
    train, test, *_ = find_images(tmp_path, test_fraction=0.5)
    assert sorted(names(tmp_path, train.paths + test.paths)) == ["a/1.png", "a/deep/2.png", "b/1.png", "b/2.png"]


@pytest.mark.parametrize("where", ["c", "a/deep"])
def test_a_link_out_of_the_root_is_followed_if_it_is_asked_for(tmp_path: Path, where: str) -> None:
    make(tmp_path, "root/a/1.png root/a/2.png root/b/1.png root/b/2.png elsewhere/3.png")
    (tmp_path / "root" / where).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"root/{where} is a link out of data.root, to .*; copy .*: data.links=true"):
        find_images(tmp_path / "root", test_fraction=0.5)
    train, test, *_ = find_images(tmp_path / "root", test_fraction=0.5, links=True)
    assert f"root/{where}/3.png" in names(tmp_path, train.paths + test.paths)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("", r"has 0 class folders \(none\), expected at least 2; put the images into .*/<class>/"),
        ("1.png 2.png", r"has 0 class folders \(none\), expected at least 2"),
        ("cats/1.png cats/2.png", r"has 1 class folders \(cats\), expected at least 2"),
        ("a/1.png b/readme.txt", r"class folder .*/b has no images \(\.avif \.bmp .*; add images to it, or remove it"),
        ("train/a/1.png train/b/1.png test/a/x.txt", r"class folder .*/test/a has no images"),
        (
            "train/a/1.png train/b/1.png test/a/1.png test/z/1.png test/y/1.png",
            r"test has classes that .*/train does not have: y, z; give both the same class folders",
        ),
        ("train/a/1.png train/b/1.png test/1.png", r"/test has no class folders; put the images into .*/test/<class>/"),
        ("a/1.png b/1.png", "no image can be held out for testing"),
        (
            "Train/a/1.png Train/b/1.png train/a/1.png",
            r"/Train and .*/train are both for training, expected one folder",
        ),
        ("train/a/1.png train/b/1.png val/a/2.png valid/a/3.png", r"/val and .*/valid are both for validation"),
        ("train/a/1.png train/b/1.png test/A/2.png", r"does not have: A \(A for a, which differ in case\)"),
        (
            "Ba\u0308r/1.png B\xe4r/1.png",
            r"two class folders 'B\xe4r' that differ only in the Unicode form of their names",
        ),
        ("a/1.png b/1.heic b/2.HEIC b/notes", r"/b has no images \(.*\), but 2 \.heic, 1 without extension"),
        (
            "a/1.png b/1.png test/a/2.png",
            r"test would be a class, .*; put the images for training into .*/train/<class>/",
        ),
        ("testing/a/1.png val/a/1.png", r"/testing and .*/val would be classes"),
        ("a/1.png a/2.png b\udce9/1.png", r"the name of class folder '.*b\\udce9' is not UTF-8; rename it"),
    ],
)
def test_wrong_folders_are_errors(tmp_path: Path, files: str, message: str) -> None:
    make(tmp_path, files)
    with pytest.raises(DataError, match=message) as caught:
        find_images(tmp_path, test_fraction=0.5)
    assert "\n" not in str(caught.value)


def test_a_wrong_root_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "images.zip")
    with pytest.raises(DataError, match=r"data\.root .*/missing does not exist; set data\.root"):
        find_images(tmp_path / "missing", test_fraction=0.5)
    with pytest.raises(DataError, match=r"data\.root .*/images\.zip is a file, expected a folder; unpack it"):
        find_images(tmp_path / "images.zip", test_fraction=0.5)


@pytest.mark.parametrize("name", ["test", "train/bird"])
def test_a_link_that_leads_nowhere_is_no_missing_folder(tmp_path: Path, name: str) -> None:
    """A disk that is not mounted is not to make another data set of a folder."""
    for folder in ("train/cat", "train/dog"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.png").touch()
    (tmp_path / name).symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match=f"{name} is a link to .*unmounted, which does not exist; mount or restore"):
        find_images(tmp_path, test_fraction=0.5)
