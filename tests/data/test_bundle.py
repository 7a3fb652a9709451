import json
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
import torch

from nas.data.bundle import DataBundle
from nas.data.spec import DataSpec, ImageSpec
from nas.data.split import TensorSplit
from nas.data.synthetic import Synthetic
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError

SPEC = ImageSpec(name="pets", input_shapes=((1, 4, 6),), class_names=("cat", "dog"), mean=(0.5,), std=(0.25,))


def bundle_of(*counts: int) -> DataBundle:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    # The pixel of an image is its number, so that a batch tells which images are in it.
    images = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 6).contiguous()
    test = TensorSplit(torch.full((2, 1, 4, 6), 255, dtype=torch.uint8), torch.tensor([0, 1]))
    return DataBundle(spec=SPEC, train=TensorSplit(images, labels), test=test, augment=Augment())


def test_spec_survives_json() -> None:
    assert DataSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC
    assert SPEC.num_classes == 2
    assert SPEC.input_shape == (1, 4, 6)


def test_spec_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SPEC.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_shapes": ((0, 4, 6),)}, r"a shape of sizes >= 1, got \(\(0, 4, 6\),\)"),
        ({"input_shapes": ((1, -3, 6),)}, r"a shape of sizes >= 1, got \(\(1, -3, 6\),\)"),
        ({"input_shapes": ()}, r"a shape of sizes >= 1, got \(\)"),
        ({"input_shapes": ((1, 6),)}, r"images are one input of shape \(C, H, W\), got \(\(1, 6\),\)"),
        ({"input_dtypes": ("float32", "float32")}, "each of 1 inputs needs a dtype of torch, got"),
        ({"input_dtypes": ("nn",)}, r"each of 1 inputs needs a dtype of torch, got \('nn',\)"),
        ({"class_names": ()}, r"at least 2 classes, got \[\]"),
        ({"class_names": ("cat",)}, r"at least 2 classes, got \['cat'\]"),
        ({"class_names": ("cat", "cat")}, "class names must differ"),
        ({"mean": (0.1, 0.2)}, r"mean must have one value for each of 1 channels, got \(0\.1, 0\.2\)"),
        ({"std": ()}, r"std must have one value for each of 1 channels, got \(\)"),
        ({"std": (0.0,)}, r"std must be > 0, got \(0\.0,\)"),
    ],
)
def test_spec_rejects_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(SPEC, **change)
    with pytest.raises(DataError, match=message):
        DataSpec.from_dict({**SPEC.to_dict(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_shapes": [["1", 4, 6]]}, "expected int, got '1'"),
        ({"input_shapes": [[True, 4, 6]]}, "expected int, got True"),
        ({"input_shapes": [1, 4, 6]}, "expected list or tuple, got 1"),
        ({"target_shape": 1}, "expected list or tuple, got 1"),
        ({"name": 3}, "expected str, got 3"),
        ({"class_names": "cat"}, "expected list or tuple, got 'cat'"),
        ({"class_names": ["cat", 1]}, "expected str, got 1"),
        ({"mean": [None]}, "expected int or float, got None"),
        ({"colour": "red"}, r"has the keys \['class_names', .*got .*'colour'"),
    ],
)
def test_spec_from_dict_rejects_wrong_types_and_keys(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DataSpec.from_dict({**SPEC.to_dict(), **change})


@pytest.mark.parametrize("missing", [field.name for field in fields(ImageSpec)])
def test_spec_from_dict_rejects_a_missing_key(missing: str) -> None:
    values = SPEC.to_dict()
    del values[missing]
    with pytest.raises(DataError, match="a data spec has the keys"):
        DataSpec.from_dict(values)


@pytest.mark.parametrize("fraction", [0.5, 0.2, 0.75])
@pytest.mark.parametrize("counts", [(10, 10), (7, 12), (3, 2)])
def test_search_splits_are_disjoint_and_have_all_classes(counts: tuple[int, int], fraction: float) -> None:
    bundle = bundle_of(*counts)
    parts = bundle.search_splits(weight_fraction=fraction, seed=0)
    seen = []
    for part in parts:
        ((images, labels),) = part.batches([torch.arange(len(part))], device=torch.device("cpu"))
        assert labels.unique().tolist() == [0, 1]
        assert torch.equal(labels, bundle.train.labels[images[:, 0, 0, 0].long()])
        seen += images[:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(sum(counts)))


def test_search_splits_are_a_function_of_the_seed() -> None:
    bundle = Synthetic().load()

    def first_image(seed: int) -> torch.Tensor:
        weight, _ = bundle.search_splits(weight_fraction=0.5, seed=seed)
        return next(weight.batches([torch.arange(20)], device=torch.device("cpu")))[0]

    assert torch.equal(first_image(1), first_image(1))
    assert not torch.equal(first_image(1), first_image(2))


@pytest.mark.parametrize("fraction", [0.0, 1.0, 2.0, -0.5, float("nan")])
def test_search_splits_reject_a_fraction_outside_0_1(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"weight_fraction must lie strictly .* got .*; set search\.weight_fraction"):
        bundle_of(4, 4).search_splits(weight_fraction=fraction, seed=0)


def test_search_splits_reject_an_empty_part() -> None:
    with pytest.raises(DataError, match="the architecture part of the 2 training examples of 'pets' would be empty"):
        bundle_of(1, 1).search_splits(weight_fraction=0.5, seed=0)


def test_the_test_images_cannot_be_reached_from_the_search_splits() -> None:
    bundle = bundle_of(5, 5)
    for part in bundle.search_splits(weight_fraction=0.5, seed=0):
        tensors = [part.labels, part._memory.inputs[0], part._rows]  # type: ignore[attr-defined]
        assert not any((tensor == 255).any() for tensor in tensors)


SIGNALS = DataSpec(
    name="signals", input_shapes=((2, 50), (7,)), input_dtypes=("float32", "int64"), target_shape=(3,), class_names=()
)


def test_a_spec_of_what_is_no_image_survives_json() -> None:
    assert DataSpec.from_dict(json.loads(json.dumps(SIGNALS.to_dict()))) == SIGNALS
    assert SIGNALS.description == "float32 (batch, 2, 50), int64 (batch, 7)"


def test_zeros_are_a_batch_of_one_of_every_input() -> None:
    first, second = SIGNALS.zeros(device=torch.device("cpu"))
    assert (first.shape, first.dtype) == ((1, 2, 50), torch.float32)
    assert (second.shape, second.dtype) == ((1, 7), torch.int64)
    assert isinstance(SPEC.zeros(device=torch.device("cpu")), torch.Tensor)


def test_what_a_spec_does_not_have() -> None:
    with pytest.raises(DataError, match="'signals' has no classes: its targets have the shape"):
        _ = SIGNALS.num_classes
    with pytest.raises(DataError, match="'signals' has 2 inputs, expected one"):
        _ = SIGNALS.channels
    one = replace(SIGNALS, input_shapes=((2, 50),), input_dtypes=("float32",))
    assert one.channels == 2
    with pytest.raises(DataError, match=r"has inputs of shape \(2, 50\), expected \(C, H, W\)"):
        _ = one.height


def test_an_image_spec_prepares_nothing_but_uint8_pixels() -> None:
    prepare = SPEC.preparation(None, torch.device("cpu"))
    with pytest.raises(DataError, match=r"images must be one uint8 tensor \(N, C, H, W\)"):
        prepare(torch.zeros(2, 1, 4, 6), torch.Generator())


def test_values_are_split_at_random() -> None:
    train = TensorSplit(torch.arange(20.0)[:, None], torch.linspace(0, 1, 20))
    bundle = DataBundle(
        spec=replace(SIGNALS, input_shapes=((1,),), input_dtypes=("float32",)), train=train, test=train, augment=None
    )
    parts = bundle.search_splits(weight_fraction=0.25, seed=3)
    assert [len(part) for part in parts] == [5, 15]
    seen = [next(part.batches([torch.arange(len(part))], device=torch.device("cpu")))[0] for part in parts]
    assert sorted(torch.cat([each for each in seen if isinstance(each, torch.Tensor)]).flatten().tolist()) == list(
        range(20)
    )


def test_what_an_augmentation_has_itself_stays_where_the_settings_have_nothing() -> None:
    def policy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images

    plain, given = replace(bundle_of(2), augment=None), Augment(flip=True, cutout=2, policy=policy)
    assert plain.augmented(cutout=3, policy=policy) == Augment(cutout=3, policy=policy)  # images given as tensors
    own = replace(plain, augment=given)
    assert own.augmented(cutout=0, policy=None) == given
    assert own.augmented(cutout=3, policy=None) == replace(given, cutout=3)


@pytest.mark.parametrize("moving", [{"flip": True}, {"crop_padding": 1}, {"policy": lambda images, generator: images}])
def test_pixels_that_have_labels_are_not_moved(moving: dict[str, Any]) -> None:
    spec, device = replace(SPEC, target_shape=(4, 6)), torch.device("cpu")
    spec.preparation(Augment(cutout=2), device)
    replace(SPEC, target_shape=(3,)).preparation(Augment(**moving), device)  # several labels of the whole image
    with pytest.raises(ConfigError, match=r"would leave its labels of shape \(4, 6\) where they are"):
        spec.preparation(Augment(**moving), device)
