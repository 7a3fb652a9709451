"""Choices put into networks that have weights."""

import copy

import pytest
import torch
from torch import nn

from nas.adapt import depthwise, factorised, fewer_heads, insert, insertions, narrower, other, skip, smaller_kernel
from nas.adapt.narrowing import inner_channels
from nas.errors import SpaceError
from nas.supernet import choices, freeze


class Block(nn.Module):
    """A residual block with 12 inner channels, and a squeeze-and-excitation of them."""

    def __init__(self, width=8, inner=12):
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.norm2 = nn.BatchNorm2d(inner)
        self.reduce = nn.Conv2d(inner, 4, 1)
        self.expand = nn.Conv2d(4, inner, 1)
        self.conv3 = nn.Conv2d(inner, width, 1)
        self.act = nn.ReLU()

    def forward(self, x):
        inner = self.act(self.norm1(self.conv1(x)))
        inner = self.norm2(self.conv2(inner))
        gate = self.expand(self.act(self.reduce(inner.mean((2, 3), keepdim=True)))).sigmoid()
        return x + self.conv3(inner * gate)


class Gated(nn.Module):
    """The feed-forward part of newer language models."""

    def __init__(self, width=6, inner=16):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """As in timm."""

    def __init__(self, width=12, num_heads=4):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().eval()


def test_the_module_itself_comes_first_and_the_network_keeps_its_function(network):
    before = network(IMAGES)
    found = choices(insert(network, {"blocks.*": [skip(), narrower(0.5)], "stem": smaller_kernel(1)}, example=IMAGES))
    assert {key: sharing[0].names for key, sharing in found.items()} == {
        "stem": ("keep", "1x1"),
        "blocks.0": ("keep", "skip", "width_0.5"),
        "blocks.1": ("keep", "skip", "width_0.5"),
    }
    assert torch.equal(freeze(network, dict.fromkeys(found, "keep"))(IMAGES), before)


def test_a_dry_run_lists_the_choices_and_changes_nothing(network):
    names = list(network.state_dict())
    listed = insertions(network, {nn.Linear: factorised(0.5), "blocks.0": skip()}, example=IMAGES)
    assert [str(one) for one in listed] == ["blocks.0 (Block): keep, skip", "head (Linear): keep, rank_3"]
    assert list(network.state_dict()) == names


def test_a_choice_inside_a_choice(network):
    insert(network, {"blocks.*": skip(), "blocks.*.conv3": factorised(0.5)}, example=IMAGES)
    found = choices(network)
    assert set(found) == {"blocks.0", "blocks.1", "blocks.0.candidates.0.conv3", "blocks.1.candidates.0.conv3"}
    chosen = dict.fromkeys(found, "keep") | {"blocks.0": "skip"}
    assert freeze(network, chosen)(IMAGES).shape == (2, 5)


def test_a_place_that_no_candidate_fits_stays(network):
    insert(network, {"*": skip(), "blocks.*": skip()}, example=IMAGES)
    assert set(choices(network)) == {"blocks", "blocks.candidates.0.0", "blocks.candidates.0.1"}


def test_modes_of_the_parts_stay(network):
    network.train()
    network.blocks[0].norm1.eval()  # a frozen norm
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    insert(network, {"blocks.*": narrower(0.5)}, example=IMAGES)
    keep, narrow = network.blocks[0].candidates
    assert (keep.training, keep.norm1.training, narrow.training) == (True, False, True)
    assert all(torch.equal(keep.get_buffer(name[9:]), buffer) for name, buffer in before.items() if "blocks.0" in name)


# -- candidates


def test_narrower_keeps_the_channels_of_the_largest_weights(network):
    block = network.blocks[0]
    with torch.no_grad():  # what the last four channels do is as small as can be, so leaving them out changes little
        for layer in (block.conv1, block.conv3):
            rows = layer.weight if layer is block.conv1 else layer.weight.transpose(0, 1)
            rows[8:] *= 1e-6
        block.expand.weight[8:] *= 1e-6
        block.reduce.weight[:, 8:] *= 1e-6
    whole = copy.deepcopy(network)(IMAGES)
    insert(network, {"blocks.0": narrower(0.6)}, example=IMAGES)
    narrow = network.blocks[0].candidates[1]
    widths = [module.weight.shape for module in (narrow.conv1, narrow.norm1, narrow.conv2, narrow.expand, narrow.conv3)]
    assert widths == [(8, 8, 1, 1), (8,), (8, 1, 3, 3), (8, 4, 1, 1), (8, 8, 1, 1)]
    chosen = freeze(network, {"blocks.0": "width_0.6"})
    assert torch.allclose(chosen(IMAGES), whole, atol=1e-4)
    chosen(IMAGES).sum().backward()  # and it can be trained


def test_both_layers_of_a_product_are_narrowed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Gated())
    insert(model, {"1": narrower(0.5)}, example=torch.randn(2, 3, 6))
    narrow = model[1].candidates[1]
    kept = [
        row
        for row in range(16)
        if any(torch.equal(narrow.gate.weight[i], model[1].candidates[0].gate.weight[row]) for i in range(8))
    ]
    assert (narrow.gate.out_features, narrow.up.out_features, narrow.down.in_features) == (8, 8, 8)
    whole = model[1].candidates[0]
    assert torch.equal(narrow.up.weight, whole.up.weight[kept])
    assert torch.equal(narrow.down.weight, whole.down.weight[:, kept])


def test_channels_that_the_module_shows_or_that_are_reshaped_stay():
    class Shown(nn.Module):
        def __init__(self, then):
            super().__init__()
            self.one, self.two, self.then = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 1), then

        def forward(self, x):
            return self.then(self.one(x), self.two)

    assert inner_channels(Shown(lambda y, two: two(y) + y)) == []  # a residual connection to the output
    assert inner_channels(Shown(lambda y, two: two(y.flatten(2).unflatten(2, (2, -1))))) == []
    assert inner_channels(Shown(lambda y, two: two(two(y)))) == []  # one layer twice
    assert inner_channels(Shown(lambda y, two: two(y) if y.sum() > 0 else y)) == []  # not to be followed
    assert [one.count for one in inner_channels(Shown(lambda y, two: two(y.relu())))] == [6]


def test_fewer_heads_leave_out_the_smallest():
    torch.manual_seed(0)
    attention = Attention()
    with torch.no_grad():
        attention.qkv.weight.unflatten(0, (3, 4, 3))[:, 2] *= 1e-3
        attention.qkv.bias.unflatten(0, (3, 4, 3))[:, 2] *= 1e-3
        attention.proj.weight.unflatten(1, (4, 3))[:, 2] *= 1e-3
    tokens = torch.randn(2, 5, 12)
    model = insert(nn.Sequential(attention), {"0": fewer_heads(0.75)}, example=tokens)
    narrow = model[0].candidates[1]
    assert (model[0].names, narrow.num_heads, narrow.qkv.out_features) == (("keep", "heads_3"), 3, 27)
    assert torch.allclose(narrow(tokens), attention(tokens), atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_factors_of_a_weight_of_low_rank_are_exact(bias):
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=bias), nn.Linear(6, 8, bias=bias)
    with torch.no_grad():
        for layer in (conv, linear):
            flat = layer.weight.flatten(1)
            layer.weight.copy_((flat[:, :2] @ flat[:2]).reshape(layer.weight.shape))
    images, rows = torch.randn(2, 6, 5, 5), torch.randn(4, 6)
    for layer, given, share in ((conv, images, 0.25), (linear, rows, 0.33)):
        model = insert(nn.Sequential(layer), {"0": factorised(share)}, example=given)
        assert model[0].names == ("keep", "rank_2")
        assert torch.allclose(model[0].candidates[1](given), layer(given), atol=1e-5)


def test_a_separable_convolution_becomes_depthwise_exactly():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(4, 3, 1, 1) * torch.randn(1, 3, 3, 3))
    images = torch.randn(2, 3, 5, 5)
    model = insert(nn.Sequential(conv), {nn.Conv2d: depthwise()}, example=images)
    assert torch.allclose(model[0].candidates[1](images), conv(images), atol=1e-5)
    assert sum(weight.numel() for weight in model[0].candidates[1].parameters()) == 3 * 9 + 4 * 3 + 4


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_the_centre_of_a_kernel(padding_mode):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 5, padding=2, padding_mode=padding_mode)
    with torch.no_grad():
        rim = torch.ones(5, 5, dtype=torch.bool)
        rim[1:4, 1:4] = False
        conv.weight[..., rim] = 0
    images = torch.randn(2, 3, 6, 6)
    model = insert(nn.Sequential(conv), {"0": smaller_kernel(3)}, example=images)
    assert torch.allclose(model[0].candidates[1](images), conv(images), atol=1e-6)


# -- what cannot work


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x.argmax(-1)))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x):
        return self.lstm(x)[0]


def compiled_in_place(model):
    model.compile()
    return model


SQUARE = torch.randn(4, 4)


@pytest.mark.parametrize(
    ("model", "places", "message"),
    [
        (Network, {"block.*": skip()}, "block.* matches no module of Network; use a path such as blocks"),
        (Network, {nn.GELU: skip()}, "the type GELU matches no module of Network"),
        (Network, {"stem": skip()}, "no candidate of stem fits where it matches, e.g. at stem, a Conv2d"),
        (Network, {"blocks.*.act": skip()}, "the module at blocks.0.act runs 2 times in a forward pass, expected once"),
        (Twice, {"layer": factorised(0.5)}, "the module at layer runs 2 times in a forward pass, expected once"),
        (Tied, {"out": factorised(0.5)}, "out.weight is tied to embed.weight, which a candidate without it"),
        (Pair, {"lstm": other("linear", lambda _: nn.Linear(4, 4))}, "the module at lstm returns a tuple, "),
        (
            lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4))),
            {"0": skip()},
            "the model was traced by torch.fx, expected plain modules",
        ),
        (lambda: torch.compile(nn.Sequential(nn.Linear(4, 4))), {"*": skip()}, "the model was compiled by"),
        (lambda: compiled_in_place(nn.Sequential(nn.Linear(4, 4))), {"0": skip()}, "the model was compiled by torch."),
        (
            lambda: nn.Sequential(nn.Linear(4, 4)),
            {"0": other("wide", lambda _: nn.Linear(4, 5))},
            r"the candidate 'wide' at 0 returns (4, 5), expected (4, 4)",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4)),
            {"0": other("wide", lambda _: nn.Linear(5, 4))},
            "the candidate 'wide' at 0 cannot take what the module takes",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4)),
            {"0": [other("a", lambda _: nn.Identity()), other("a", lambda _: nn.ReLU())]},
            "two candidates at 0 are called 'a', expected a name each",
        ),
        (lambda: nn.Sequential(nn.Linear(4, 4)), {"0": other("a", lambda _: 3)}, "the maker of 'a' returned a int"),
        (lambda: nn.Sequential(nn.Linear(3, 4)), {"0": skip()}, "the model cannot take the example"),
    ],
)  # fmt: skip
def test_mistake_is_told_in_one_line_and_changes_nothing(model, places, message):
    built = model()
    example = IMAGES if isinstance(built, Network) else SQUARE
    before = [type(module) for module in built.modules()]
    with pytest.raises(SpaceError) as raised:
        insert(built, places, example=example)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert [type(module) for module in built.modules()] == before


@pytest.mark.parametrize(
    "make", [lambda: narrower(), lambda: narrower(1.0), lambda: factorised(-1), lambda: smaller_kernel(2)]
)
def test_arguments_of_makers(make):
    with pytest.raises(SpaceError):
        make()
