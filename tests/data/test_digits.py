import pytest
import torch
from torch import Tensor

from nas.data.bundle import Split
from nas.data.digits import Digits
from nas.data.stratify import hold_out
from nas.data.transforms import Augment
from nas.errors import ConfigError


def everything(split: Split) -> tuple[Tensor, Tensor]:
    return next(split.batches([torch.arange(len(split))], device=torch.device("cpu")))


def test_has_all_images_in_scaled_pixels() -> None:
    from sklearn.datasets import load_digits

    bundle = Digits().load()
    assert bundle.spec.input_shape == (1, 8, 8)
    assert bundle.spec.class_names == tuple("0123456789")
    assert (len(bundle.train), len(bundle.test)) == (1438, 359)
    assert bundle.augment == Augment(crop_padding=1)

    images, labels = everything(bundle.train)
    original = load_digits()
    train, _ = hold_out(torch.from_numpy(original.target), test_fraction=0.2)
    assert labels.tolist() == original.target[train].tolist()
    assert torch.allclose(images[:, 0].double() / 255 * 16, torch.from_numpy(original.images[train]), atol=0.04)
    scaled = images.double() / 255
    assert bundle.spec.mean[0] == pytest.approx(scaled.mean().item())
    assert bundle.spec.std[0] == pytest.approx(scaled.std(correction=0).item())


def test_the_test_images_are_stratified_and_always_the_same() -> None:
    first = everything(Digits().load().test)
    torch.manual_seed(1)
    second = everything(Digits().load().test)
    assert torch.equal(first[0], second[0])
    counts = torch.bincount(first[1], minlength=10)
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_options_reach_the_bundle() -> None:
    bundle = Digits(test_fraction=0.5, crop_padding=0, flip=True).load()
    assert len(bundle.test) in (898, 899)
    assert bundle.augment == Augment(flip=True)


def test_a_wrong_fraction_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"test_fraction must lie strictly between 0 and 1, got 1\.5"):
        Digits(test_fraction=1.5).load()
