import pytest
import torch

from nas.data.stratify import hold_out, stratified_indices
from nas.errors import ConfigError, DataError


def labels_of(*counts: int) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("fraction", [0.5, 0.2, 0.9, 1 / 3, 0.7])
@pytest.mark.parametrize("counts", [(50, 50), (7, 31, 11), (101, 3, 20, 55), (2, 3)])
def test_parts_are_disjoint_complete_and_stratified(counts: tuple[int, ...], fraction: float) -> None:
    labels = labels_of(*counts)
    first, second = stratified_indices(labels, fraction=fraction, seed=3)
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(len(labels)))
    for label, count in enumerate(counts):
        taken = int((labels[first] == label).sum())
        assert 1 <= taken < count
        assert abs(taken - fraction * count) <= 1


@pytest.mark.parametrize("fraction", [0.5, 0.2, 1 / 3, 0.7])
def test_the_total_is_rounded_once_not_once_a_class(fraction: float) -> None:
    labels = labels_of(*[7] * 100)
    assert len(stratified_indices(labels, fraction=fraction, seed=0)[0]) == round(fraction * 700)


def test_the_only_image_of_a_class_goes_to_the_first_part() -> None:
    labels = labels_of(1, 1, 4)
    first, second = stratified_indices(labels, fraction=0.1, seed=0)
    assert labels[first].unique().tolist() == [0, 1, 2]
    assert labels[second].tolist() == [2, 2, 2]


def test_is_a_function_of_the_seed() -> None:
    labels = labels_of(20, 20)
    a, b, c = (stratified_indices(labels, fraction=0.5, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_labels_need_not_be_consecutive() -> None:
    first, second = stratified_indices(torch.tensor([5, 9, 5, 9]), fraction=0.5, seed=0)
    assert (len(first), len(second)) == (2, 2)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_hold_out_rejects_a_fraction_outside_0_1(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"test_fraction must lie strictly between 0 and 1, got .*; set data\.test"):
        hold_out(labels_of(5, 5), test_fraction=fraction)


def test_hold_out_needs_a_class_with_two_images() -> None:
    with pytest.raises(DataError, match="each of the 3 images is the only one of its class; add at least one more"):
        hold_out(labels_of(1, 1, 1), test_fraction=0.5)
