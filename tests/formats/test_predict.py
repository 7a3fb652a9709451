import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from nas.data.image_file import read_pixels
from nas.data.spec import DataSpec
from nas.errors import ConfigError, DataError, SpaceError
from nas.formats.predict import Prediction, Predictor, images_in, to_csv


class Brightness(nn.Module):
    """Scores of three classes by the mean of each channel."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        if images.shape[-1] < 4:
            raise RuntimeError("kernel is larger than the image")
        return 3 * images.mean(dim=(2, 3))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "x" / "below").mkdir(parents=True)
    for number, (name, size) in enumerate({"b.png": (20, 10), "below/c.PNG": (9, 9), "a.jpg": (16, 30)}.items()):
        Image.new("RGB", size, tuple(255 * (number == channel) for channel in range(3))).save(tmp_path / "x" / name)
    (tmp_path / "x" / "notes.txt").write_text("no image")
    return tmp_path / "x"


def of_files(spec, size=8):
    return dataclasses.replace(spec, from_files=True, image_size=size)


def test_files_are_read_as_in_training_and_the_best_classes_come_first(folder, spec):
    paths = images_in(folder)
    assert [path.name for path in paths] == ["a.jpg", "b.png", "c.PNG"]
    network = Brightness()
    predictor = Predictor(network, of_files(spec))
    found = list(predictor.predict(paths, top=2, batch_size=2))
    assert [(one.path, one.classes[0][0]) for one in found] == [(paths[0], "c"), (paths[1], "a"), (paths[2], "b")]
    assert network.seen == [(2, 3, 8, 8), (1, 3, 8, 8)]
    pixels = read_pixels(paths[1], channels=3, size=8)[None] / 255
    expected = network((pixels - 0.5) / 0.25).softmax(dim=1)[0]
    assert found[1].classes[0][1] == pytest.approx(expected[0].item())
    assert [len(one.classes) for one in found] == [2, 2, 2]
    assert [len(one.classes) for one in predictor.predict(paths, top=9, batch_size=2)] == [3, 3, 3]


def test_sizes_of_files_are_kept_where_training_kept_them(folder, spec):
    network = Brightness()
    assert len(list(Predictor(network, of_files(spec, None)).predict(images_in(folder), top=1, batch_size=9))) == 3
    assert network.seen == [(1, 3, 30, 16), (1, 3, 10, 20), (1, 3, 9, 9)]
    arrays = Predictor(Brightness(), spec)  # not of files: the size of the training's images
    assert (arrays.size, spec.height) == (8, 8)


def test_what_cannot_be_read_or_taken_has_a_problem_and_the_rest_goes_on(folder, spec):
    (folder / "a_bad.png").write_bytes(b"no image")
    Image.new("RGB", (2, 2)).save(folder / "d.png")
    found = list(Predictor(Brightness(), of_files(spec, None)).predict(images_in(folder), top=1, batch_size=9))
    problems = {one.path.name: one.problem for one in found if one.problem}
    assert set(problems) == {"a_bad.png", "d.png"}
    assert "cannot be read as an image" in problems["a_bad.png"]
    assert "of 2x2 pixels" in problems["d.png"]
    assert [one.path.name for one in found] == ["a.jpg", "a_bad.png", "b.png", "c.PNG", "d.png"]


def test_what_it_cannot_predict_is_refused(folder, spec, tmp_path):
    with pytest.raises(DataError, match="expected one that takes grey or RGB images"):
        Predictor(Brightness(), DataSpec(name="x", input_shapes=((3,),)))
    with pytest.raises(SpaceError, match="expected a score for each of its 3 classes"):
        list(Predictor(nn.Flatten(), of_files(spec)).predict(images_in(folder), top=1, batch_size=9))
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"no images in|does not exist"):
            images_in(path)


def test_the_csv_has_a_row_for_each_file(tmp_path):
    found = [
        Prediction(tmp_path / 'a,"b.png', (("cat", 0.75), ("dog", 0.25))),
        Prediction(tmp_path / "c.png", problem="x"),
    ]
    rows = list(csv.reader(to_csv(found, top=2).splitlines()))
    assert rows[0] == ["file", "class", "probability", "class_2", "probability_2", "problem"]
    assert rows[1:] == [
        [str(tmp_path / 'a,"b.png'), "cat", "0.750000", "dog", "0.250000", ""],
        [str(tmp_path / "c.png"), "", "", "", "", "x"],
    ]
    assert torch.is_grad_enabled()


def test_names_of_strangers_are_no_formulas_in_a_spreadsheet():
    found = [Prediction(Path("=HYPERLINK(x)"), (("+1", 0.75), ("a=b", 0.25))), Prediction(Path("@a"), problem="-x")]
    rows = list(csv.reader(to_csv(found, top=2).splitlines()))
    assert rows[1:] == [
        ["'=HYPERLINK(x)", "'+1", "0.750000", "a=b", "0.250000", ""],
        ["'@a", "", "", "", "", "'-x"],
    ]


def test_a_size_that_no_image_can_be_decoded_to_is_refused(spec):
    """An export of a stranger may ask for images of any size."""
    with pytest.raises(ConfigError, match="at most 8192, got 60000"):
        Predictor(nn.Flatten(), dataclasses.replace(spec, from_files=True, image_size=60_000))
