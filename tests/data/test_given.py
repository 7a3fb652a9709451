"""Data that are given in Python: images too many for memory, several inputs, and what is refused."""

import itertools

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from nas.data.given import Reading, to_score, training
from nas.data.spec import ImageSpec
from nas.data.split import StreamSplit, TensorSplit
from nas.errors import ConfigError, DataError

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


class Items(Dataset):
    """Four items that a function makes of an index. longer: the length grows by one each time it is asked for."""

    def __init__(self, item, *, longer=0):
        self.item, self.longer, self.asked = item, longer, 0

    def __len__(self):
        self.asked += 1
        return 4 + self.longer * self.asked

    def __getitem__(self, index):
        return self.item(index)


def random_from(first):
    """Items that are random from the index `first` on."""
    counted = itertools.count(1)
    return lambda index: (torch.full((2,), float(next(counted) if index >= first else 0)), index % 2)


def in_one_buffer():
    buffer = torch.zeros(2)
    return lambda index: (buffer.fill_(float(index)), index % 2)


@pytest.mark.parametrize("reading", [Reading(), STREAMED])
@pytest.mark.parametrize(
    ("item", "message"),
    [
        (random_from(3), "item 3 of train is different each time it is read"),
        (in_one_buffer(), "item 0 of train is overwritten when another item is read, expected a tensor of its own"),
        (lambda index: (torch.zeros(2), 1j), "item 0 of train is a target of complex numbers"),
        (lambda index: (torch.eye(2).to_sparse(), 1), "item 0 of train is a sparse or nested tensor"),
    ],
)
def test_items_that_no_batch_can_be_made_of_are_refused(item, message, reading):
    with pytest.raises(DataError, match=message):
        training(Items(item), reading)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.eye(2).to_sparse(), torch.arange(2), "train has a sparse or nested tensor"),
        (torch.eye(2), torch.ones(2) * 1j, "train has a target of complex numbers"),
    ],
)
def test_tensors_that_no_batch_can_be_made_of_are_refused(inputs, targets, message):
    with pytest.raises(DataError, match=message):
        training((inputs, targets), Reading())


def test_items_may_have_gradients_and_numbers_that_are_missing():
    weight = torch.ones((), requires_grad=True)
    split = training(Items(lambda index: (weight * torch.tensor([index, torch.nan]), 0.5 * weight)), Reading()).train
    ((inputs, targets),) = split.batches([torch.arange(4)], device=CPU)
    assert not inputs.requires_grad
    assert not targets.requires_grad
    assert inputs[:, 0].tolist() == [0, 1, 2, 3]


def test_a_data_set_that_grows_keeps_the_length_that_it_had():
    split = training(Items(lambda index: (torch.zeros(2), index % 2), longer=1), Reading()).train
    assert len(split) in (5, 6)


def test_numbers_that_are_conjugated_or_negated_lazily_are_as_any():
    signal = torch.complex(torch.arange(4.0), torch.ones(4))[:, None]
    lazy = signal.conj()
    assert lazy.imag.is_neg()
    given, same = ((lazy, lazy.imag), lazy.imag), ((lazy.resolve_conj(), -signal.imag), -signal.imag)
    assert training(given, Reading()).trained_on == training(same, Reading()).trained_on


def test_targets_of_tensors_are_rounded_as_those_of_items():
    bundle = training((torch.zeros(2, 1), torch.zeros(2, 3, dtype=torch.float16)), Reading())
    ((_, targets),) = bundle.train.batches([torch.arange(2)], device=CPU)
    assert targets.dtype == torch.float32


@pytest.mark.parametrize(("shape", "said"), [((8, 8, 3), True), ((8, 9, 3), False), ((3, 8, 8), False)])
def test_channels_that_come_last_are_said_of_floats_too(capsys, shape, said):
    training((torch.zeros(4, *shape), torch.arange(4) % 2), Reading())
    assert ("which is read as (channels, height, width)" in capsys.readouterr().err) is said


def test_images_without_channels_are_said(capsys):
    training((torch.zeros(4, 8, 8, dtype=torch.uint8), torch.arange(4) % 2), Reading())
    assert "no channels, so they are not read as images; give grey images as images[:, None]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda inputs, generator: None, "returned a NoneType for a batch of 2, expected a tensor"),
        (lambda inputs, generator: inputs[:1], r"returned \(1, 3\) for a batch of 2"),
        (lambda inputs, generator: [inputs], "returned a list for a batch of 2"),
        (lambda inputs: inputs, r"fails on a batch of 2 \(TypeError: .*expected a function of .inputs, generator."),
        (lambda inputs, generator: inputs[9], r"fails on a batch of 2 \(IndexError: "),
    ],
)
def test_a_mistaken_augmentation_is_named(augment, message):
    bundle = training((torch.zeros(2, 3), torch.arange(2)), Reading(), augment=augment)
    prepare = bundle.spec.preparation(bundle.augment, CPU)
    with pytest.raises(ConfigError, match=f"data.augment {message}"):
        prepare(torch.zeros(2, 3), torch.Generator())
