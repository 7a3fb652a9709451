import pytest
import torch

from nas.data.statistics import channel_statistics


def test_equals_the_float_computation_over_all_batches() -> None:
    images = torch.randint(256, (50, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = channel_statistics([images[:7], images[7:]])
    scaled = images.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())


def test_a_constant_channel_has_std_one() -> None:
    images = torch.zeros(3, 2, 2, 2, dtype=torch.uint8)
    images[:, 1] = torch.arange(4).view(2, 2).to(torch.uint8) * 50
    images[:, 0] = 51
    mean, std = channel_statistics([images])
    assert mean[0] == pytest.approx(0.2)
    assert std[0] == 1.0
    assert std[1] < 1
