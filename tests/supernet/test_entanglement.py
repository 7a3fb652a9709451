"""Weight entanglement: which convolutions share a kernel, what they compute, and what a plain network keeps."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import load_ops
from torch import nn

from nas.data.spec import ImageSpec
from nas.errors import ConfigError
from nas.methods.undrawn import UndrawnDecay
from nas.spaces.darts import Darts
from nas.spaces.edge_ops import EdgeOps
from nas.spaces.nas_bench_201 import NasBench201
from nas.spaces.op_sets import darts as darts_ops, nas_bench_201 as bench_ops
from nas.spaces.ops import DilConv, ReLUConvBN, SepConv, Zero
from nas.supernet.choice import Choice, Gate, choices, gates
from nas.supernet.entanglement import CentreConv2d, entangle, separate, shares_weights
from nas.supernet.freezing import freeze
from nas.training.evaluate import count_parameters

IMAGES = ImageSpec(name="x", input_shapes=((3, 8, 8),), class_names=("a", "b", "c"), mean=(0.5,) * 3, std=(0.25,) * 3)
SPACE = NasBench201(channels=4, cells=1, entangled=True)


def two_kernels(stride=1):
    made = {f"nor_conv_{k}x{k}": ReLUConvBN(4, 4, stride, False, kernel_size=k) for k in (1, 3)}
    return entangle(made)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_small_kernel_is_the_centre_of_the_large_one(stride):
    small, large = two_kernels(stride).values()
    x = torch.randn(2, 4, 8, 8)
    cross = torch.zeros_like(large[1].weight)
    cross[:, :, 1, 1] = large[1].weight.detach()[:, :, 1, 1]
    assert torch.allclose(small[1](x), F.conv2d(x, cross, stride=stride, padding=1), atol=1e-6)


def test_both_candidates_train_the_one_kernel():
    small, large = two_kernels().values()
    x = torch.randn(2, 4, 8, 8)
    small(x).square().sum().backward()
    gradient = large[1].weight.grad
    assert gradient[:, :, 1, 1].abs().sum() > 0
    border = torch.ones(3, 3, dtype=torch.bool)
    border[1, 1] = False
    assert not gradient[:, :, border].any()


def test_a_depthwise_kernel_is_the_centre_and_a_pointwise_one_is_the_same():
    made = entangle({f"sep_conv_{k}x{k}": SepConv(4, 4, 1, False, kernel_size=k) for k in (3, 5)})
    small, large = made.values()
    assert [type(small[i]) for i in (1, 2, 5, 6)] == [CentreConv2d, nn.Conv2d] * 2
    for place in (1, 2, 5, 6):
        assert small[place].weight is large[place].weight
    assert small[1].weight is not small[5].weight


def test_operations_of_another_kind_or_dilation_share_nothing():
    made = {
        "sep_conv_3x3": SepConv(4, 4, 1, False, kernel_size=3),
        "dil_conv_5x5": DilConv(4, 4, 1, False, kernel_size=5),
        "none": Zero(4, 4, 1, False),
        "wider": ReLUConvBN(4, 8, 1, False, kernel_size=5),
        "nor_conv_3x3": ReLUConvBN(4, 4, 1, False, kernel_size=3),
    }
    assert not shares_weights(entangle(made))
    # The same, but for the place of the smaller kernel, which is not the centre.
    off = {"a": nn.Conv2d(4, 4, 1, padding=1, bias=False), "b": nn.Conv2d(4, 4, 3, padding=1, bias=False)}
    assert not shares_weights(entangle(off))
    # A convolution that takes the place of the smaller one would not have its hook.
    hooked = {f"{k}x{k}": nn.Conv2d(4, 4, k, padding=k // 2) for k in (1, 3)}
    hooked["1x1"].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert entangle(hooked) == hooked


def test_three_sizes_share_the_largest_and_a_candidate_may_be_a_bare_convolution():
    made = entangle({f"c{k}": nn.Conv2d(2, 2, k, padding=k // 2) for k in (3, 7, 5)})
    assert made["c3"].weight is made["c5"].weight is made["c7"].weight
    assert len({id(one.bias) for one in made.values()}) == 3  # biases stay separate
    x = torch.randn(1, 2, 9, 9)
    plain = separate(nn.ModuleDict(copy.deepcopy(made)))
    for name, one in made.items():
        assert type(plain[name]) is nn.Conv2d
        assert torch.equal(one(x), plain[name](x))
    assert not shares_weights(plain)


def test_a_supernet_shares_on_every_edge_and_its_copies_do_too():
    supernet = SPACE.supernet(IMAGES)
    plain = NasBench201(channels=4, cells=1).supernet(IMAGES)
    small = sum(4**stage * 4 * 4 * 6 for stage in range(3))  # the 1x1 kernels of three cells of six edges
    assert sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in supernet.parameters()) == small
    for model in (supernet, copy.deepcopy(supernet), supernet.double().to(memory_format=torch.channels_last)):
        for sharing in choices(model).values():
            for choice in sharing:
                assert choice.candidates[2][1].weight is choice.candidates[3][1].weight


def test_a_checkpoint_goes_into_another_supernet():
    one, other = SPACE.supernet(IMAGES), SPACE.supernet(IMAGES)
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 3, 8, 8)
    for drawn in range(5):
        with gates(choices(one), {key: Gate(None, drawn) for key in choices(one)}):
            expected = one(x)
        with gates(choices(other), {key: Gate(None, drawn) for key in choices(other)}):
            assert torch.equal(other(x), expected)


@pytest.mark.parametrize("drawn", ["nor_conv_1x1", "nor_conv_3x3"])
def test_a_frozen_supernet_is_plain_and_computes_the_same(drawn):
    supernet = SPACE.supernet(IMAGES)
    found, x = choices(supernet), torch.randn(4, 3, 8, 8)
    index = next(iter(found.values()))[0].names.index(drawn)
    with gates(found, {key: Gate(None, index) for key in found}):
        expected = supernet(x)
    frozen = freeze(supernet, dict.fromkeys(found, drawn))
    assert not any(isinstance(part, CentreConv2d) for part in frozen.modules())
    assert torch.equal(frozen(x), expected)
    own = freeze(NasBench201(channels=4, cells=1).supernet(IMAGES), dict.fromkeys(found, drawn))
    assert count_parameters(frozen) == count_parameters(own)
    frozen.load_state_dict(own.state_dict())  # the same names and shapes


def test_a_candidate_that_is_frozen_beside_its_supernet_does_not_change_it():
    choice = Choice(two_kernels(), key="edge")
    weight = choice.candidates[1][1].weight.detach().clone()
    frozen = freeze(nn.Sequential(choice), {"edge": "nor_conv_1x1"})
    with torch.no_grad():
        frozen[0][1].weight.zero_()
    assert torch.equal(choice.candidates[1][1].weight, weight)


def test_undrawn_decay_knows_a_kernel_by_either_candidate():
    choice = Choice(two_kernels(), key="edge")
    optimizer = torch.optim.SGD(choice.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    undrawn = UndrawnDecay(choice, {"edge": [choice]}, optimizer)
    undrawn.drew(["edge"], [0])  # the 1x1
    undrawn.fill(choice.parameters())
    assert choice.candidates[1][1].weight.grad is not None


def test_in_a_darts_supernet_the_small_kernels_train_the_centres_of_the_large_ones():
    space = Darts(channels=4, cells=3, steps=2, ops=load_ops("darts"), entangled=True)
    supernet = space.supernet(ImageSpec(**{**vars(IMAGES), "input_shapes": ((3, 16, 16),)}))
    found = choices(supernet)
    names = next(iter(found.values()))[0].names
    drawn, large = names.index("sep_conv_3x3"), names.index("sep_conv_5x5")
    with gates(found, {key: Gate(None, drawn) for key in found}):
        supernet(torch.randn(4, 3, 16, 16)).square().sum().backward()
    for choice in (choice for sharing in found.values() for choice in sharing):
        gradient = choice.candidates[large][1].weight.grad
        assert gradient[..., 1:4, 1:4].any()
        assert gradient.count_nonzero() == gradient[..., 1:4, 1:4].count_nonzero()


@pytest.mark.parametrize("ops", [darts_ops, bench_ops])
def test_the_published_sets_of_operations_can_share(ops):
    NasBench201(ops=ops(), entangled=True)


def test_operations_need_only_be_built_with_the_channels_of_the_space():
    def grouped(size):
        return lambda c_in, c_out, stride, affine: nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=16)

    ops = {"one": grouped(1), "three": grouped(3)}
    NasBench201(ops=ops, channels=16, entangled=True)
    with pytest.raises(ConfigError, match="none of one can share"):
        NasBench201(ops={"one": grouped(1)}, channels=16, entangled=True)


def test_operations_that_cannot_share_are_refused():
    ops = {"none": Zero, "sep_conv_3x3": darts_ops()["sep_conv_3x3"]}
    with pytest.raises(ConfigError, match="none of none, sep_conv_3x3 can share"):
        NasBench201(ops=ops, entangled=True)
    apart = EdgeOps(ops=darts_ops(), edges={"normal/0-2": ["dil_conv_3x3"], "normal/1-2": ["dil_conv_5x5"]})
    with pytest.raises(ConfigError, match="can share"):
        Darts(ops=apart, entangled=True)
    Darts(ops=load_ops("s1"), entangled=True)  # some of its edges offer both kernel sizes
