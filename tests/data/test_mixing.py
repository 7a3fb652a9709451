"""Mixup and cutmix: labels are mixed in the same proportion as images."""

import pytest
import torch
from torch import Generator

from nas.data.mixing import Mixing

CLASSES = 4


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i has only pixels i, so that a mixed one tells what it is mixed of."""
    numbers = torch.arange(float(size))
    return numbers.view(-1, 1, 1, 1).expand(-1, 2, 8, 8).contiguous(), numbers.long() % CLASSES


def expected(labels: torch.Tensor, share: float) -> torch.Tensor:
    own = torch.nn.functional.one_hot(labels, CLASSES)
    return share * own + (1 - share) * own.roll(1, 0)


@pytest.mark.parametrize("seed", range(8))
def test_mixup_blends_images_and_labels_alike(seed: int) -> None:
    images, labels = batch()
    mixed, targets = Mixing(classes=CLASSES, mixup=0.7)(images, labels, seeded(seed))
    # Image 2 is share * 2 + (1 - share) * 1.
    share = float(mixed[2, 0, 0, 0]) - 1
    assert 0 <= share <= 1
    assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-5)
    assert torch.allclose(targets, expected(labels, share), atol=1e-5)
    assert torch.allclose(targets.sum(1), torch.ones(len(labels)))


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_pastes_a_rectangle_and_weighs_the_labels_by_its_area(seed: int) -> None:
    images, labels = batch()
    mixed, targets = Mixing(classes=CLASSES, cutmix=1.0)(images, labels, seeded(seed))
    pasted = mixed[2, 0] == 1
    assert torch.equal(mixed[2, 0] == 2, ~pasted)
    rows, columns = pasted.any(1), pasted.any(0)
    assert torch.equal(pasted, rows[:, None] & columns[None])  # a rectangle
    assert all(int(line.diff().abs().sum()) <= 2 for line in (rows.int(), columns.int()))  # in one piece
    assert torch.equal(mixed[:, :, ~pasted], images[:, :, ~pasted])
    assert torch.equal(mixed[:, :, pasted], images.roll(1, 0)[:, :, pasted])
    assert torch.allclose(targets, expected(labels, 1 - pasted.float().mean().item()), atol=1e-6)


def test_the_share_is_beta_distributed() -> None:
    images, labels = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1])
    for alpha in (0.3, 2.0):
        mixing = Mixing(classes=CLASSES, mixup=alpha)
        shares = torch.tensor([float(mixing(images, labels, seeded(seed))[0][1]) for seed in range(800)])
        assert shares.mean().item() == pytest.approx(0.5, abs=0.05)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def test_with_both_every_batch_gets_one_of_them() -> None:
    images, labels = batch()
    mixing = Mixing(classes=CLASSES, mixup=1.0, cutmix=1.0)
    blended = 0
    for seed in range(200):
        mixed, _ = mixing(images, labels, seeded(seed))
        values = set(mixed[2].flatten().tolist())
        assert len(values) == 1 or values == {1.0, 2.0}
        blended += not values <= {1.0, 2.0}
    assert 70 < blended < 130


def test_it_depends_on_the_generator_only_and_leaves_the_global_one_alone() -> None:
    images, labels = batch()
    before = images.clone()
    mixing = Mixing(classes=CLASSES, mixup=0.5, cutmix=0.5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = mixing(images, labels, seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = mixing(images, labels, seeded(3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], mixing(images, labels, seeded(4))[0])
    assert torch.equal(images, before)


def test_a_batch_of_one_is_mixed_with_itself() -> None:
    images, labels = batch(1)
    mixed, targets = Mixing(classes=CLASSES, mixup=1.0)(images + 1, labels, seeded(0))
    assert torch.allclose(mixed, images + 1)
    assert targets.tolist() == [[1.0, 0.0, 0.0, 0.0]]
