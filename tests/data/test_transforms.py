"""The batched transforms against loops over single images."""

import time
from dataclasses import replace

import pytest
import torch
from torch import Generator

from nas.data.transforms import Augment, cutout, normalise, random_crop, random_flip
from nas.errors import ConfigError


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def pixels(n: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(1, 256, (n, channels, height, width), generator=seeded(1)).to(torch.uint8)


@pytest.mark.parametrize(("height", "width", "padding"), [(8, 8, 1), (5, 9, 3), (4, 4, 6)])
def test_random_crop_equals_pad_then_slice(height: int, width: int, padding: int) -> None:
    images = pixels(32, 3, height, width)
    top, left = torch.randint(2 * padding + 1, (2, 32), generator=seeded())
    got = random_crop(images, padding=padding, generator=seeded())
    for image, crop, y, x in zip(images, got, top.tolist(), left.tolist(), strict=True):
        padded = torch.zeros(3, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        padded[:, padding : padding + height, padding : padding + width] = image
        assert torch.equal(crop, padded[:, y : y + height, x : x + width])


def test_random_crop_draws_every_offset_equally_often() -> None:
    marker = torch.zeros(9000, 1, 3, 3, dtype=torch.uint8)
    marker[:, :, 1, 1] = 1
    frequency = random_crop(marker, padding=1, generator=seeded()).float().mean(0)
    assert torch.allclose(frequency, torch.full((1, 3, 3), 1 / 9), atol=0.012)


def test_random_crop_without_padding_draws_nothing() -> None:
    images, generator = pixels(2, 1, 4, 4), seeded()
    before = generator.get_state()
    assert random_crop(images, padding=0, generator=generator) is images
    assert torch.equal(generator.get_state(), before)


def test_random_flip_mirrors_about_half_of_the_images() -> None:
    images = pixels(2000, 1, 2, 3)
    got = random_flip(images, generator=seeded())
    mirrored = torch.tensor(
        [torch.equal(a, b.flip(2)) and not torch.equal(a, b) for a, b in zip(got, images, strict=True)]
    )
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(got, images, strict=True)])
    assert (mirrored | kept).all()
    assert 0.45 < mirrored.float().mean() < 0.55


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 4), (6, 10, 3), (5, 5, 5), (8, 8, 1)])
def test_cutout_equals_a_loop_over_images(height: int, width: int, size: int) -> None:
    generator = seeded()
    centre_y = torch.randint(height, (64, 1), generator=generator).flatten().tolist()
    centre_x = torch.randint(width, (64, 1), generator=generator).flatten().tolist()
    expected = torch.ones(64, 2, height, width)
    for image, y, x in zip(expected, centre_y, centre_x, strict=True):
        top, left = y - size // 2, x - size // 2
        image[:, max(top, 0) : top + size, max(left, 0) : left + size] = 0
    assert torch.equal(cutout(torch.ones(64, 2, height, width), size=size, generator=seeded()), expected)


def test_cutout_hole_has_the_whole_area_inside_and_less_at_the_edge() -> None:
    area = (cutout(torch.ones(500, 1, 8, 8), size=4, generator=seeded()) == 0).sum((1, 2, 3))
    assert area.max() == 16
    assert area.min() == 4  # centred on a corner, a quarter of an even square is inside


def test_cutout_larger_than_the_image_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cutout 9 is larger than the 8x16 images; set cutout to at most 8"):
        cutout(torch.ones(1, 1, 8, 16), size=9, generator=seeded())


def test_normalise_is_the_formula() -> None:
    images, mean, std = pixels(4, 3, 5, 6), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 1.0])
    expected = (images.double() / 255 - mean[:, None, None]) / std[:, None, None]
    got = normalise(images, mean=mean, std=std)
    assert got.dtype == torch.float32
    assert torch.allclose(got, expected.float(), atol=1e-5)


def test_augment_applies_all_in_order_and_only_what_is_on() -> None:
    images, mean, std = pixels(16, 3, 8, 8), torch.full((3,), 0.5), torch.full((3,), 0.25)
    plain = Augment()(images, mean=mean, std=std, generator=seeded())
    assert torch.equal(plain, normalise(images, mean=mean, std=std))

    full = replace(Augment(crop_padding=2, flip=True), cutout=4)
    got, generator = full(images, mean=mean, std=std, generator=seeded()), seeded()
    expected = random_flip(random_crop(images, padding=2, generator=generator), generator=generator)
    expected = cutout(normalise(expected, mean=mean, std=std), size=4, generator=generator)
    assert torch.equal(got, expected)
    assert got.shape == images.shape


def test_augment_leaves_the_input_alone() -> None:
    images = pixels(4, 1, 8, 8)
    before = images.clone()
    Augment(crop_padding=1, flip=True, cutout=2)(images, mean=torch.zeros(1), std=torch.ones(1), generator=seeded())
    assert torch.equal(images, before)


@pytest.mark.parametrize("field", ["crop_padding", "cutout"])
def test_augment_rejects_negative_sizes(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be >= 0 pixels, got -1; set {field}=0"):
        Augment(**{field: -1})


def test_augment_is_cheap() -> None:
    images, mean, std = pixels(64, 3, 32, 32), torch.full((3,), 0.5), torch.full((3,), 0.25)
    augment, generator = Augment(crop_padding=4, flip=True, cutout=16), seeded()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        augment(images, mean=mean, std=std, generator=generator)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02  # about 1.5 ms on one core; a loop over the images takes 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_augment_is_the_same_on_the_gpu() -> None:
    images, mean, std = pixels(16, 3, 8, 8), torch.full((3,), 0.5), torch.full((3,), 0.25)
    augment = Augment(crop_padding=2, flip=True, cutout=4)
    on_cpu = augment(images, mean=mean, std=std, generator=seeded())
    on_gpu = augment(images.cuda(), mean=mean.cuda(), std=std.cuda(), generator=seeded())
    assert torch.allclose(on_cpu, on_gpu.cpu(), atol=1e-5)
