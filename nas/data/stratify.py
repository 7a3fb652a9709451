"""Splits a labelled set in two parts that both keep the proportions of the classes."""

import math

import torch
from torch import Tensor

from nas.errors import ConfigError, DataError

HOLD_OUT_SEED = 0


def stratified_indices(labels: Tensor, *, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits 0..N-1 in two: `fraction` of every class goes to the first part, the rest to the second.

    labels: (N,) int64. Returns two sorted, disjoint int64 vectors that together are 0..N-1. Sizes are rounded by
    largest remainder, so the first part has round(N * fraction) images. After that, a class of two or more images gets
    at least one in each part, and the only image of a class always goes to the first. The result depends only on the
    arguments.
    """
    classes = [torch.nonzero(labels == label).flatten() for label in torch.unique(labels)]
    quotas = [fraction * len(members) for members in classes]
    counts = [math.floor(quota + 1e-9) for quota in quotas]  # 0.7 * 10 is a little less than 7
    by_remainder = sorted(range(len(classes)), key=lambda index: counts[index] - quotas[index])
    for index in by_remainder[: round(fraction * len(labels)) - sum(counts)]:
        counts[index] += 1

    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for members, count in zip(classes, counts, strict=True):
        take = min(max(count, 1), len(members) - 1) if len(members) > 1 else 1
        shuffled = members[torch.randperm(len(members), generator=generator)]
        first.append(shuffled[:take])
        second.append(shuffled[take:])
    return torch.cat(first).sort().values, torch.cat(second).sort().values


def hold_out(labels: Tensor, *, test_fraction: float) -> tuple[Tensor, Tensor]:
    """Returns (train, test) indices for a data set without a test split, stratified as in `stratified_indices`.

    The seed is fixed: the test images are the same in every run, and no choice made by a run can reach them.
    Raises ConfigError if the fraction is outside (0, 1), DataError if every image is the only one of its class.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(
            f"test_fraction must lie strictly between 0 and 1, got {test_fraction}", fix="set data.test_fraction=0.2"
        )
    train, test = stratified_indices(labels, fraction=1 - test_fraction, seed=HOLD_OUT_SEED)
    if len(test) == 0:
        raise DataError(
            f"no image can be held out for testing: each of the {len(train)} images is the only one of its class",
            fix="add at least one more image to a class",
        )
    return train, test
