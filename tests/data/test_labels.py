"""Labels of every pixel: all are checked before anything is trained."""

import pytest
import torch

from nas.data.labels import check_labels
from nas.data.spec import DataSpec
from nas.data.split import StreamSplit, TensorSplit
from nas.errors import DataError
from nas.training.task import Classification, Custom, check_targets

SPEC = DataSpec(name="pixels", input_shapes=((1, 2, 2),), target_shape=(2, 2), class_names=("a", "b"))


class Pixels:
    """150 examples, of which the last has the labels given."""

    def __init__(self, *last):
        self.targets = torch.zeros(150, 2, 2, dtype=torch.long)
        self.targets[:, 0, 0] = -100
        self.targets[-1] = torch.tensor(last).view(2, 2)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.zeros(1, 2, 2), self.targets[index]


def in_memory(pixels):
    return TensorSplit(torch.zeros(150, 1, 2, 2), pixels.targets)


def streamed(pixels):
    return StreamSplit(pixels, None, workers=0)


@pytest.mark.parametrize("kind", [in_memory, streamed])
@pytest.mark.parametrize(
    ("last", "got"),
    [
        ((0, 1, 2, -100), "the label 2"),
        ((0, -1, 255, 1), "the label -1"),
        ((-100, -100, -100, -100), "no label but -100"),
    ],
)
def test_what_is_neither_a_class_nor_ignored_is_refused_by_its_place(kind, last, got):
    expected = f"item 149 of the test set of 'pixels' has {got}, expected labels from 0 to 1, and -100 for labels"
    with pytest.raises(DataError, match=expected):
        check_labels(kind(Pixels(*last)), SPEC, "test")
    check_labels(kind(Pixels(0, 1, -100, 1)), SPEC, "test")


def test_a_loss_of_ones_own_may_know_other_labels():
    split = in_memory(Pixels(0, 1, 255, 1))
    check_targets(Custom(loss=min, metric=min, name="m", higher_is_better=True), SPEC, test=split)
    with pytest.raises(DataError, match="the label 255"):
        check_targets(Classification(), SPEC, test=split)


def test_a_split_that_is_checked_is_as_before():
    split = streamed(Pixels(0, 1, -100, 1))
    check_labels(split, SPEC, "test")
    assert len(split) == 150
    ((_, targets),) = split.batches([torch.tensor([149, 3])], device=torch.device("cpu"))
    assert targets.tolist() == [[[0, 1], [-100, 1]], [[-100, 0], [0, 0]]]
