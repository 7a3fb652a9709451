import base64
import io
from types import SimpleNamespace

import torch
from PIL import Image

from nas.cli.stages.for_report import write_mistakes
from nas.data.spec import ImageSpec
from nas.training.mistakes import SIDE, Mistakes


class Images:
    """A split whose image i has the value i everywhere."""

    def __init__(self, size):
        self.size = size

    def batches(self, order, *, device):
        for indices in order:
            yield indices.to(torch.uint8)[:, None, None, None].expand(-1, *self.size), indices


def scores(confidences, answers, classes=3):
    """Logits of answers with these softmax probabilities, the rest shared by the other classes."""
    p = torch.tensor(confidences, dtype=torch.float64)
    rest = ((1 - p) / (classes - 1))[:, None].repeat(1, classes)
    return rest.scatter(1, torch.tensor(answers)[:, None], p[:, None]).log()


def test_the_surest_wrong_answers_are_kept_worst_first(tmp_path):
    spec = ImageSpec(name="x", input_shapes=((1, 4, 4),), class_names=("a", "b", "c"), mean=(0.5,), std=(0.5,))
    mistakes = Mistakes(most=2)
    mistakes.add(scores([0.9, 0.8, 0.99], [1, 1, 2]), torch.tensor([1, 0, 2]))  # only the second is wrong
    mistakes.add(scores([0.7, 0.95], [0, 2]), torch.tensor([2, 0]))
    found = mistakes.found(Images((1, 4, 4)), spec)
    assert [(one["index"], one["true"], one["predicted"], round(one["confidence"], 6)) for one in found] == [
        (4, "a", "c", 0.95), (1, "a", "b", 0.8),
    ]  # fmt: skip
    data = SimpleNamespace(test=Images((1, 4, 4)), spec=spec)
    for kept, there in ((mistakes, True), (Mistakes(), False)):  # of a run that goes on and makes none any more
        write_mistakes(kept, data, tmp_path)
        assert (tmp_path / "mistakes.json").exists() == there
    pixels = [Image.open(io.BytesIO(base64.b64decode(one["png"]))).getpixel((0, 0)) for one in found]
    assert pixels == [4, 1]


def test_pictures_are_small_and_of_images_alone():
    three = ImageSpec(name="x", input_shapes=((3, 300, 200),), class_names=("a", "b"), mean=(0.5,) * 3, std=(0.5,) * 3)
    mistakes = Mistakes()
    mistakes.add(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    (one,) = mistakes.found(Images((3, 300, 200)), three)
    assert Image.open(io.BytesIO(base64.b64decode(one["png"]))).size == (64, SIDE)
    two = ImageSpec(name="x", input_shapes=((2, 4, 4),), class_names=("a", "b"), mean=(0.5,) * 2, std=(0.5,) * 2)
    assert mistakes.found(Images((2, 4, 4)), two) == []
    of_pixels = Mistakes()
    of_pixels.add(torch.zeros(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.int64))
    of_pixels.add(torch.zeros(2, 1), torch.zeros(2))
    assert of_pixels.found(Images((3, 4, 4)), three) == []
