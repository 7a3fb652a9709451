"""Policies: torchvision's operations, drawn for each image separately, and only from the given generator."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator

from nas.data.policy import Policy, RandAugment, TrivialAugment
from nas.data.transforms import Augment, cutout, normalise, random_flip
from nas.errors import ConfigError

POLICIES: list[Callable[[], Policy]] = [TrivialAugment, RandAugment]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def pixels(n: int = 24, channels: int = 3) -> torch.Tensor:
    return torch.randint(256, (n, channels, 12, 10), generator=seeded(1)).to(torch.uint8)


@pytest.mark.parametrize("make", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_type_stay(make: Callable[[], Policy], channels: int) -> None:
    images = pixels(channels=channels)
    before = images.clone()
    got = make()(images, seeded())
    assert (got.shape, got.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)


@pytest.mark.parametrize("make", POLICIES)
def test_every_image_gets_operations_of_its_own(make: Callable[[], Policy]) -> None:
    same = pixels(1).expand(24, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in make()(same, seeded())}) > 12


@pytest.mark.parametrize("make", POLICIES)
def test_it_depends_on_the_generator_only_and_leaves_the_global_one_alone(make: Callable[[], Policy]) -> None:
    images, policy = pixels(), make()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = policy(images, seeded(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(policy(images, seeded(5)), first)
    assert not torch.equal(policy(images, seeded(6)), first)


def test_it_is_what_torchvision_does() -> None:
    from torchvision.transforms import v2

    images = pixels()
    got = RandAugment(operations=1, magnitude=30)(images, seeded(5))
    torch.manual_seed(int(torch.randint(2**62, (), generator=seeded(5))))
    theirs = v2.RandAugment(num_ops=1, magnitude=30)
    assert torch.equal(got, torch.stack([theirs(image) for image in images]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operations": 0}, "operations of a policy must be at least 1, got 0"),
        ({"magnitude": 31}, "magnitude of a policy must be from 0 to 30, got 31"),
        ({"magnitude": -1}, "magnitude of a policy must be from 0 to 30, got -1"),
    ],
)
def test_outside_of_its_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RandAugment(**arguments)


def test_it_comes_after_the_flip_and_before_the_hole() -> None:
    images, mean, std = pixels(), torch.full((3,), 0.5), torch.full((3,), 0.25)
    policy = TrivialAugment()
    got = Augment(flip=True, cutout=4, policy=policy)(images, mean=mean, std=std, generator=seeded())
    generator = seeded()
    expected = policy(random_flip(images, generator=generator), generator)
    expected = cutout(normalise(expected, mean=mean, std=std), size=4, generator=generator)
    assert torch.equal(got, expected)
