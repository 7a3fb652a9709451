import pytest
import torch
from torch import nn

from nas.spaces.ops import FactorizedReduce, SearchNormalised, Zero, avg_pool, max_pool, skip_connect


def exact(norm):
    """Make a batch norm in eval mode the identity to the bit: its denominator is sqrt(var + eps)."""
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    return norm


# -- every operation that ships


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (7, 8), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_shape(op, stride, size, affine):
    module = op(6, 6, stride, affine)
    x = torch.randn(2, 6, *size)
    output = module.eval()(x)
    assert output.shape == (2, 6, -(-size[0] // stride), -(-size[1] // stride))
    assert output.isfinite().all()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 7])
def test_bfloat16_agrees_with_float32(op, op_case, stride, size):
    if op_case[1] == "noise":
        pytest.skip("drawn anew in every pass")
    module = op(6, 6, stride, False)
    x = torch.randn(4, 6, size, size).bfloat16().float()  # the same input in both
    reference = module(x)
    output = module.to(torch.bfloat16)(x.bfloat16())
    assert output.dtype == torch.bfloat16
    # bfloat16 rounds by 2^-9 at most; a handful of layers may add up to ten times that.
    assert (output.float() - reference).norm() <= 0.02 * reference.norm() + 1e-6


@pytest.mark.parametrize("stride", [1, 2])
def test_without_affine_no_norm_is_trainable(op, stride):
    module = op(4, 4, stride, False)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.weight is None and m.bias is None for m in norms)
    assert sum(p.dim() == 1 for p in module.parameters()) == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_with_affine_every_norm_is_trainable_and_nothing_else_has_a_bias(op, stride):
    module = op(4, 4, stride, True)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.weight.requires_grad and m.bias.requires_grad for m in norms)
    assert sum(p.dim() == 1 for p in module.parameters()) == 2 * len(norms)


@pytest.mark.parametrize("stride", [1, 2])
def test_it_does_not_change_its_input(op, stride):
    # All edges out of a node read the same tensor: an in-place ReLU would change what the others see.
    x = torch.randn(2, 4, 8, 8)
    copy = x.clone()
    op(4, 4, stride, True)(x)
    assert torch.equal(x, copy)


@pytest.mark.parametrize(("c_in", "c_out"), [(4, 6), (6, 4)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3"])
def test_other_numbers_of_channels(ops_tables, name, stride, c_in, c_out):
    module = ops_tables["nas_bench_201"][name](c_in, c_out, stride, True)
    assert module(torch.randn(2, c_in, 8, 8)).shape == (2, c_out, 8 // stride, 8 // stride)


@pytest.mark.parametrize("name", ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"])
@pytest.mark.parametrize("stride", [1, 2])
def test_other_numbers_of_channels_darts(ops_tables, name, stride):
    module = ops_tables["darts"][name](4, 6, stride, True)
    assert module(torch.randn(2, 4, 8, 8)).shape == (2, 6, 8 // stride, 8 // stride)


# Weights by hand for C = 6: norms have no parameters while searching.
WEIGHTS = {
    "none": 0,
    "skip_connect": 0,
    "max_pool_3x3": 0,
    "avg_pool_3x3": 0,
    "nor_conv_1x1": 36,
    "nor_conv_3x3": 36 * 9,
    "sep_conv_3x3": 2 * (6 * 9 + 36),
    "sep_conv_5x5": 2 * (6 * 25 + 36),
    "dil_conv_3x3": 6 * 9 + 36,
    "dil_conv_5x5": 6 * 25 + 36,
    "noise": 0,
    **{f"mbconv_{k}x{k}_e{e}": 6 * e * (6 + k * k + 6) for k in (3, 5, 7) for e in (3, 6)},
}


def test_number_of_weights(op, op_case):
    assert sum(p.numel() for p in op(6, 6, 1, False).parameters()) == WEIGHTS[op_case[1]]


RECEPTIVE = {"nor_conv_1x1": 1, "nor_conv_3x3": 3, "sep_conv_3x3": 5, "sep_conv_5x5": 9}
RECEPTIVE |= {f"mbconv_{k}x{k}_e{e}": k for k in (3, 5, 7) for e in (3, 6)}
DILATED = {"dil_conv_3x3": (5, 3), "dil_conv_5x5": (9, 5)}  # extent, positions that count


@pytest.mark.parametrize("stride", [1])
def test_receptive_field(op, op_case, stride):
    """Which pixels reach the middle one: the kernel sizes, dilation and padding are what the names say."""
    name = op_case[1]
    if name not in RECEPTIVE | DILATED:
        pytest.skip("no convolution")
    module = op(2, 2, stride, False).eval()
    x = torch.rand(1, 2, 15, 15).add_(0.1).requires_grad_()
    for p in module.parameters():
        nn.init.constant_(p, 0.1)
    module(x)[0, :, 7, 7].sum().backward()
    columns = (x.grad.abs().sum(dim=(0, 1, 2)) > 0).nonzero().flatten().tolist()
    extent, count = DILATED.get(name) or (RECEPTIVE[name],) * 2
    assert columns[-1] - columns[0] + 1 == extent
    assert len(columns) == count
    assert columns[0] + columns[-1] == 14  # centred


# -- one by one


@pytest.mark.parametrize("stride", [1, 2])
def test_zero_is_zero_even_for_infinite_inputs(stride):
    x = torch.full((2, 3, 5, 5), torch.inf)
    output = Zero(3, 4, stride, False)(x)
    assert output.shape == (2, 4, -(-5 // stride), -(-5 // stride))
    assert (output == 0).all()


def test_zero_follows_type_and_device_of_its_input():
    assert Zero(1, 1, 1, False)(torch.ones(1, 1, 2, 2, dtype=torch.float64)).dtype == torch.float64
    assert Zero(1, 1, 1, False)(torch.ones(1, 1, 2, 2, device="meta")).device.type == "meta"


def test_skip_connect_is_the_identity_where_shapes_allow():
    assert isinstance(skip_connect(4, 4, 1, False), nn.Identity)
    assert isinstance(skip_connect(4, 4, 2, False), FactorizedReduce)
    x = torch.randn(1, 4, 3, 3)
    assert skip_connect(4, 4, 1, False)(x) is x


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
def test_avg_pool_ignores_its_padding(stride, size):
    # With padding counted, corners of a constant image would come out as 4/9.
    assert torch.equal(avg_pool(2, 2, stride, False)(x := torch.ones(1, 2, size, size)), x[:, :, ::stride, ::stride])


def test_avg_pool_by_hand():
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    assert avg_pool(1, 1, 2, False)(x).flatten().tolist() == [3.0, 4.0, 6.0, 7.0]
    assert avg_pool(1, 1, 1, False)(x)[0, 0, 1, 1].item() == 5.0


def test_max_pool_by_hand():
    x = -torch.arange(1.0, 10.0).view(1, 1, 3, 3)  # all negative: zeros in the padding would show
    assert max_pool(1, 1, 2, False)(x).flatten().tolist() == [-1.0, -2.0, -4.0, -5.0]


def test_search_normalised_only_while_searching():
    op = SearchNormalised(avg_pool)
    assert isinstance(op(3, 3, 1, True), nn.AvgPool2d)
    searched = op(3, 3, 1, False)
    output = searched(torch.randn(64, 3, 8, 8) * 5 + 2)
    assert output.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (output.var(dim=(0, 2, 3), unbiased=False) - 1).abs().max() < 1e-3


# -- FactorizedReduce


def reduce_by_hand(even, odd):
    module = FactorizedReduce(1, 2, False).eval()
    exact(module.norm)
    nn.init.constant_(module.even.weight, even)
    nn.init.constant_(module.odd.weight, odd)
    return module


def test_factorized_reduce_by_hand_even():
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    output = reduce_by_hand(2.0, 3.0)(x)[0]
    assert output[0].flatten().tolist() == [2 * v for v in (1, 3, 9, 11)]
    assert output[1].flatten().tolist() == [3 * v for v in (6, 8, 14, 16)]


def test_factorized_reduce_by_hand_odd():
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    output = reduce_by_hand(2.0, 3.0)(x)[0]
    assert output[0].flatten().tolist() == [2 * v for v in (1, 3, 7, 9)]
    assert output[1].flatten().tolist() == [3 * v for v in (5, 0, 0, 0)]


def test_factorized_reduce_applies_relu_first():
    assert (reduce_by_hand(2.0, 3.0)(-torch.ones(1, 1, 4, 4)) == 0).all()


def seen_pixels(size):
    module = FactorizedReduce(2, 4, False).eval()
    x = torch.rand(1, 2, size, size).add_(0.1).requires_grad_()
    output = module(x)
    (output * torch.randn_like(output)).sum().backward()
    return x.grad.abs().sum(dim=1)[0] != 0


@pytest.mark.parametrize("size", [7, 8])
def test_factorized_reduce_sees_the_pixels_that_the_published_one_sees(size):
    """DARTS' two convolutions start at (0, 0) and (1, 1) with stride 2."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    assert torch.equal(seen_pixels(size), row % 2 == column % 2)


@pytest.mark.parametrize("c_out", [2, 3, 5])
def test_factorized_reduce_has_any_number_of_channels(c_out):
    assert FactorizedReduce(3, c_out, True)(torch.randn(2, 3, 6, 6)).shape == (2, c_out, 3, 3)
