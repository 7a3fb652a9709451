"""Data that are given in Python: images too many for memory, several inputs, and what is refused."""

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from nas.data.given import Reading, to_score, training
from nas.data.spec import ImageSpec
from nas.data.split import StreamSplit, TensorSplit
from nas.errors import DataError

CPU = torch.device("cpu")
STREAMED = Reading(memory_limit_mb=0, workers=0)


def images(count=12):
    pixels = torch.arange(count * 32, dtype=torch.int64).remainder(251).to(torch.uint8).view(count, 2, 4, 4)
    return pixels, torch.arange(count) % 3


class Pairs(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return (torch.full((2,), float(index)), torch.full((3,), index)), 0.5 * index


def test_images_that_are_streamed_have_the_spec_of_those_in_memory():
    kept, streamed = training(images(), Reading()), training(TensorDataset(*images()), STREAMED)
    assert isinstance(kept.train, TensorSplit)
    assert isinstance(streamed.train, StreamSplit)
    assert isinstance(kept.spec, ImageSpec)
    assert streamed.spec == kept.spec
    order = [torch.tensor([3, 5])]
    (one,), (other,) = (list(bundle.train.batches(order, device=CPU)) for bundle in (kept, streamed))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert len(kept.test) == len(streamed.test) == 0


@pytest.mark.parametrize("reading", [Reading(), STREAMED])
def test_several_inputs_and_values_as_targets(reading):
    bundle = training(Pairs(), reading)
    assert bundle.spec.input_shapes == ((2,), (3,))
    assert bundle.spec.input_dtypes == ("float32", "int64")
    assert bundle.spec.class_names == ()
    assert bundle.train.labels is None


def test_a_test_split_has_the_classes_of_the_training():
    pixels, labels = images()
    spec = training((pixels, labels), Reading(classes=("a", "b", "c"))).spec
    scored = to_score((pixels[:2], labels[:2] * 0), spec, Reading())
    assert scored.spec.class_names == ("a", "b", "c")
    assert (len(scored.train), len(scored.test)) == (0, 2)
    with pytest.raises(DataError, match="the targets of test are integers from 3 to 3, expected class labels from 0"):
        to_score((pixels[:2], torch.tensor([3, 3])), spec, Reading())


@pytest.mark.parametrize("given", [(torch.zeros(0, 2), torch.zeros(0)), TensorDataset(torch.zeros(0, 2))])
def test_nothing_is_refused(given):
    with pytest.raises(DataError, match="train is empty; give at least one example"):
        training(given, Reading())
