"""Choices put into networks that have weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

import nas
from nas.adapt import depthwise, factorised, fewer_heads, insert, insertions, narrower, other, skip, smaller_kernel
from nas.adapt.insertion import _planned
from nas.adapt.narrowing import inner_channels
from nas.errors import SpaceError
from nas.supernet import choices, freeze
from nas.supernet.choice import Gate, gates
from nas.supernet.copying import copied


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

    def parts(self, x):
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x):
        q, k, v = self.parts(x)
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


def test_a_maker_that_fits_nowhere_is_warned_of_once(network, capsys):
    places = {"blocks.[01]": [skip(), fewer_heads(0.5), narrower(0.5)], "stem": [depthwise(), smaller_kernel(1)]}
    insertions(network, places, example=IMAGES)
    insert(network, places, example=IMAGES)
    assert capsys.readouterr().err == "warning: fewer_heads makes no candidate at blocks.[01], e.g. for blocks.0\n"


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


class Flipped(nn.Identity):
    def forward(self, x):
        return x.flip(1)


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
    assert inner_channels(nn.Sequential(nn.Conv2d(4, 6, 1), Flipped(), nn.Conv2d(6, 4, 1))) == []
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


class HeadsFirst(Attention):
    def parts(self, x):
        return self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)


def test_attention_whose_heads_are_in_another_order_keeps_them_all():
    makers, tokens = [skip(), fewer_heads(0.75)], torch.zeros(2, 5, 12)
    assert candidates(nn.Sequential(HeadsFirst()), {"0": makers}, tokens)["0"].keys() == {"keep", "skip"}
    assert "heads_3" in candidates(nn.Sequential(Attention()), {"0": makers}, tokens)["0"]


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


def candidates(model, places, example):
    """path -> candidates by name, as `insert` would have them."""
    return {place.path: made for place, made in _planned(model, places, example)}


class Other(nn.Conv2d):
    """A layer of its own kind: its weight is standardised, as in timm."""

    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def patched(layer):
    layer.forward = lambda x: functional.conv2d(x, layer.weight.flip(0), layer.bias, padding=1)
    return layer


def masked(layer):
    layer.weight.register_hook(lambda gradient: gradient.tril())
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        lambda: masked(nn.Conv2d(8, 8, 3, padding=1)),
        lambda: patched(nn.Conv2d(8, 8, 3, padding=1)),
        lambda: Other(8, 8, 3, padding=1),
        lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)),
        lambda: parametrizations.orthogonal(nn.Conv2d(8, 8, 3, padding=1)),
        lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 3, padding=1)),
        lambda: pruned(nn.Conv2d(8, 8, 3, padding=1)),
    ],
)
def test_layers_that_compute_or_learn_something_else_get_no_candidate(layer):
    x, makers = torch.randn(2, 8, 6, 6), [skip(), factorised(0.5), depthwise(), smaller_kernel(1)]
    assert candidates(nn.Sequential(layer()), {"0": makers}, x)["0"].keys() == {"keep", "skip"}
    block = nn.Sequential(layer(), nn.ReLU(), nn.Conv2d(8, 8, 1))
    assert "width_0.5" not in candidates(nn.Sequential(block), {"0": [skip(), narrower(0.5, multiple_of=1)]}, x)["0"]


def test_cut_weights_keep_their_attributes():
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1))
    block[0].weight.decays = False
    makers = [smaller_kernel(1), narrower(0.5, multiple_of=1)]
    made = [candidates(nn.Sequential(copied(block)), {at: makers}, torch.randn(2, 8, 6, 6))[at] for at in ("0", "0.0")]
    assert made[0]["width_0.5"][0].weight.decays is made[1]["1x1"].weight.decays is False


def test_layers_with_hooks_are_replaced_by_their_copies_alone():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    layer.register_forward_hook(lambda module, args, output: 0 * output)
    makers = [factorised(0.5), depthwise(), smaller_kernel(1)]
    made = candidates(nn.Sequential(layer), {"0": makers}, torch.randn(2, 4, 6, 6))
    assert made["0"].keys() == {"keep", "1x1"}
    assert not made["0"]["1x1"](torch.randn(2, 4, 6, 6)).any()


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_new_layers_are_frozen_as_the_layer_is(frozen):
    layer = nn.Conv2d(4, 4, 3, padding=1)
    getattr(layer, frozen).requires_grad_(False)
    made = candidates(nn.Sequential(layer), {"0": [factorised(0.5), depthwise()]}, torch.randn(2, 4, 6, 6))["0"]
    for name in ("rank_2", "depthwise"):
        learns = [parameter.requires_grad for parameter in made[name].parameters()]
        assert learns == ([False, False, True] if frozen == "weight" else [True, True, False])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_wide_and_complex_weights_keep_their_precision(dtype):
    layer, x = nn.Linear(6, 6, dtype=dtype), torch.randn(3, 6, dtype=dtype)
    full = candidates(nn.Sequential(layer), {"0": factorised(0.999)}, x)["0"]["rank_6"]
    assert torch.allclose(full(x), layer(x), atol=1e-12 if dtype == torch.float64 else 1e-5)


def test_inserting_draws_no_random_numbers():
    model = nn.Sequential(nn.Linear(8, 8))
    before = torch.get_rng_state()
    nas.insert(model, {"0": factorised(0.5)}, example=torch.zeros(2, 8))
    assert torch.equal(torch.get_rng_state(), before)


class Aliased(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.order = [self.first, self.second]

    def forward(self, x):
        for module in self.order:
            x = module(x)
        return x


def test_a_module_that_is_reached_past_its_place_is_refused_and_nothing_changes():
    model = Aliased()
    before = dict(model.named_modules())
    with pytest.raises(
        SpaceError, match=r"^the module at first is reached past its place in the model, through a list"
    ):
        nas.insert(model, {"first": skip(), "second": skip()}, example=torch.zeros(2, 4, 6, 6))
    assert dict(model.named_modules()) == before


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x).relu() * self.c(x).sigmoid())


def test_tied_weights_inside_a_place_stay_tied():
    made = candidates(nn.Sequential(Tied()), {"0": [skip(), narrower(0.5, multiple_of=1)]}, torch.randn(2, 4, 6, 6))
    assert made["0"].keys() == {"keep", "skip"}


def test_volumes_are_narrowed():
    block = nn.Sequential(nn.Conv3d(3, 16, 1), nn.BatchNorm3d(16), nn.ReLU(), nn.Conv3d(16, 3, 1))
    narrow = candidates(nn.Sequential(block), {"0": narrower(0.5)}, torch.randn(2, 3, 4, 4, 4))["0"]["width_0.5"]
    assert [tuple(weight.shape[:2]) for weight in narrow.parameters() if weight.ndim > 1] == [(8, 3), (3, 8)]


@pytest.mark.parametrize(("groups", "kept", "left"), [(4, [4, 5, 6, 7, 12, 13, 14, 15], 2), (1, [*range(8, 16)], 1)])
def test_groups_that_are_normalised_together_are_kept_together(groups, kept, left):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(groups, 16), nn.SiLU(), nn.Conv2d(16, 3, 1))
    with torch.no_grad():
        important = torch.zeros(16).index_fill(0, torch.tensor(kept), 1.0)
        block[1].weight.copy_(torch.arange(16.0))
        block[0].weight.copy_(block[0].weight.sign() * (1e-3 + important).view(16, 1, 1, 1))
        block[3].weight.copy_(block[3].weight.sign() * (1e-3 + important).view(1, 16, 1, 1))
    x = torch.randn(2, 3, 5, 5)
    narrow = candidates(nn.Sequential(block), {"0": narrower(0.5, multiple_of=1)}, x)["0"]["width_0.5"]
    assert (narrow[1].num_groups, narrow[1].num_channels, narrow[1].weight.tolist()) == (left, 8, kept)
    assert torch.equal(narrow[0].weight, block[0].weight[kept])
    if groups > 1:  # the statistics of the groups that are kept do not change
        inner = block[2](block[1](block[0](x)))[:, kept]
        assert torch.allclose(narrow[2](narrow[1](narrow[0](x))), inner, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "between", "last", "x"),
    [
        (nn.Linear(4, 8), nn.MaxPool2d(3, 1, 1), nn.Linear(8, 4), torch.randn(2, 5, 6, 4)),
        (nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4), torch.randn(2, 8, 4)),
        (nn.Conv1d(4, 8, 1), nn.AvgPool2d(3, 1, 1), nn.Conv1d(8, 4, 1), torch.randn(2, 4, 6)),
    ],
)
def test_what_mixes_channels_keeps_them_all(first, between, last, x):
    block = nn.Sequential(first, between, last)
    made = candidates(nn.Sequential(block), {"0": [skip(), narrower(0.5, multiple_of=1)]}, x)
    assert made["0"].keys() == {"keep", "skip"}
    flat = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    assert "width_0.5" in candidates(nn.Sequential(flat), {"0": narrower(0.5, multiple_of=1)}, torch.randn(2, 4))["0"]


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x, mask=None):
        hidden = self.a(x)
        return self.b(hidden if mask is not None or self.training else hidden.softmax(1))


def test_the_branch_that_the_module_takes_decides():
    model = nn.Sequential(Masked()).train()
    assert candidates(model, {"0": [skip(), narrower(0.5, multiple_of=1)]}, torch.randn(2, 4, 6, 6))["0"].keys() == {
        "keep", "skip",
    }  # fmt: skip
    assert model[0].training


def test_a_fraction_of_a_count_is_exact():
    makers = [factorised(0.55, 0.07), narrower(0.55, 1e-12, multiple_of=1)]
    block = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    made = candidates(block, {"0": makers}, torch.randn(2, 100))["0"]
    assert made.keys() == {"keep", "rank_55", "rank_7"}
    made = candidates(nn.Sequential(block), {"0": makers}, torch.randn(2, 100))["0"]
    assert [made[f"width_{share}"][0].out_features for share in ("0.55", "1e-12")] == [55, 1]


def test_equal_widths_are_one_candidate():
    block = nn.Sequential(nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1))
    made = candidates(nn.Sequential(block), {"0": narrower(0.5, 0.45, 0.3)}, torch.randn(2, 4, 6, 6))["0"]
    assert made.keys() == {"keep", "width_0.5"}


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.unused = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.inner(input=x)


def test_a_module_called_by_name_can_be_skipped_and_one_that_does_not_run_is_passed_over():
    model, x = Named().eval(), torch.randn(2, 4, 6, 6)
    nas.insert(model, {nn.Conv2d: skip()}, example=x)
    assert isinstance(model.unused, nn.Conv2d)
    found = nas.supernet.choices(model)
    with gates(found, {"inner": Gate(None, 1)}):
        assert torch.equal(model(x), x)
    with pytest.raises(SpaceError, match=r"^the model has choices already, expected plain modules; give all places in"):
        nas.insert(model, {"unused": skip()}, example=x)


class Wide(nn.Sequential):
    def forward(self, x):
        return super().forward(x).double()


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["0"], r"^places is a list, expected where -> makers"),
        ({1: skip()}, r"^places has 1, expected paths of modules or types of modules"),
        ({"0": skip}, r"^the maker at 0 is the function skip itself, expected what it returns; call it: skip\(\)$"),
        ({"0": [narrower]}, r"^the maker at 0 is the function narrower itself, .*; call it: narrower\(\.\.\.\)$"),
        (
            {"0": ["skip"]},
            r"^the maker at 0 is 'skip', expected a function; give those of nas\.adapt, called: skip\(\)",
        ),
        ({"0": {"narrower": 0.5}}, r"^the maker at 0 is \{'narrower': 0\.5\}, expected a function"),
        ({"0": lambda place: [nn.ReLU()]}, r"^a maker returned a list at 0, expected candidates by name"),
        ({"0": lambda place: {3: nn.ReLU()}}, r"^a maker returned 3 -> a ReLU at 0, expected the name of a candidate"),
        ({"0": lambda place: {"relu": nn.ReLU}}, r"^a maker returned 'relu' -> a type at 0, expected the name"),
        (
            {"0": other("wide", lambda conv: conv.double())},
            r"^the candidate 'wide' at 0 cannot take what the module takes ",
        ),
        (
            {"0": other("wide", lambda conv: Wide(conv))},
            r"^the candidate 'wide' at 0 returns torch\.float64, expected torch\.float32",
        ),
        ({}, r"^places is empty, expected where -> makers"),
    ],
)
def test_places_of_another_type_are_one_line(places, message):
    with pytest.raises(SpaceError, match=message):
        nas.insert(nn.Sequential(nn.Conv2d(4, 4, 1)), places, example=torch.zeros(2, 4, 6, 6))


@pytest.mark.parametrize(("model", "got"), [(nn.Sequential, "the class Sequential"), (abs, "a builtin_function")])
def test_a_model_that_is_no_module_is_one_line(model, got):
    with pytest.raises(SpaceError, match=f"^model is {got}.*, expected an nn.Module; give the module itself"):
        nas.insert(model, {"0": skip()}, example=torch.zeros(2, 4))


def test_an_example_of_another_type_is_one_line():
    with pytest.raises(SpaceError, match=r"^example is a NoneType, expected a tensor, a sequence of arguments, or"):
        nas.insert(nn.Sequential(nn.Conv2d(4, 4, 1)), {"0": skip()}, example=None)


def test_a_name_of_a_candidate_is_a_text():
    with pytest.raises(SpaceError, match=r"^other takes a name and a function, got 3 and "):
        nas.adapt.other(3, nn.SiLU)


class Scaled(nn.Conv2d):
    def forward(self, x, scale=2.0):
        return super().forward(x) * scale


class Asserted(nn.Conv2d):
    def forward(self, x, scale=None):
        assert scale is not None
        return super().forward(x) * scale


class Routed(nn.Module):
    """Gives more arguments to modules of one type, as U-Nets of diffusion models do."""

    def __init__(self, kind):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 1), kind(4, 4, 1)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, 3.0) if isinstance(layer, Scaled | Asserted) else layer(x)
        return {"features": x}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Scaled,
            r"^the model gives other outputs with choices in it, though the modules themselves are chosen, as it ",
        ),
        (
            Asserted,
            r"^the model does not run with choices in it, as it asks for the type or attributes of a module \(Ass",
        ),
    ],
)
def test_a_model_that_asks_for_the_type_of_a_module_is_refused_and_nothing_changes(kind, message):
    model = Routed(kind)
    before = dict(model.named_modules())
    with pytest.raises(SpaceError, match=message):
        nas.insert(model, {"layers.*": skip()}, example=torch.ones(2, 4, 3, 3))
    assert dict(model.named_modules()) == before
    nas.insert(model, {"layers.0": skip()}, example=torch.ones(2, 4, 3, 3))


class Noisy(nn.Module):
    """Gives other outputs in each pass."""

    def __init__(self):
        super().__init__()
        self.mid, self.passes = nn.Linear(4, 4), 0

    def forward(self, x):
        self.passes += 1
        return self.mid(x) + self.passes


def test_a_model_that_never_gives_the_same_outputs_is_taken():
    assert choices(nas.insert(Noisy(), {"mid": skip()}, example=torch.zeros(2, 4)))


class Rewritten(nn.Module):
    """Writes into the output of `mid`, whose input it needs afterwards."""

    def __init__(self):
        super().__init__()
        self.mid, self.act = nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)

    def forward(self, x):
        before = x + 0
        return before + self.act(self.mid(before))


@pytest.mark.parametrize("maker", [skip(), other("same", lambda module: nn.Dropout(0.0))])
def test_a_candidate_that_returns_its_input_gives_a_copy_where_the_model_writes_into_it(maker):
    x = torch.randn(2, 4, 3, 3)
    model = insert(Rewritten(), {"mid": maker}, example=x)
    assert torch.equal(freeze(model, {"mid": model.mid.names[1]})(x), x + x.relu())
    apart = insert(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), {"0": skip()}, example=x)[0].candidates[1]
    assert apart(x) is x  # nobody writes into it, so nothing is copied


def test_dropout_that_writes_in_training_alone_spares_what_a_skipped_module_is_given():
    class Dropped(Rewritten):
        def __init__(self):
            super().__init__()
            self.act = nn.Dropout(0.5, inplace=True)

    x, model = torch.ones(2, 4, 3, 3), insert(Dropped(), {"mid": skip()}, example=torch.ones(2, 4, 3, 3))
    assert set(freeze(model, {"mid": "skip"}).train()(x).unique().tolist()) == {1.0, 3.0}
