"""The source of a network: what it computes, and how it reads. test_export.py loads it in a fresh process."""

import ast
import re
import shutil
import subprocess
import sys

import custom_models
import pytest
import torch
import torch.nn.functional as F
from conftest import load_ops
from torch import nn
from torchvision.ops import StochasticDepth

from nas.data.spec import DataSpec, ImageSpec
from nas.formats.load import without_auxiliary
from nas.formats.source.source import source
from nas.formats.source.unsupported import UnsupportedError
from nas.spaces.darts import PUBLISHED, Darts
from nas.spaces.mbconv import MBConv
from nas.supernet.freezing import freeze
from nas.supernet.genotype import Genotype

IMAGES = ImageSpec(
    name="images", input_shapes=((3, 32, 32),), class_names=("a", "b's"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)
VALUES = DataSpec(name="values", input_shapes=((4,),))


def space_network(space, genotype=None):
    """The space's network, having seen data, so that its statistics are its own."""
    if genotype is None:
        options = space.options(IMAGES)
        genotype = Genotype(space.name, {key: names[i % len(names)] for i, (key, names) in enumerate(options.items())})
    network = space.network(IMAGES, genotype).train()
    for _ in range(2):
        network(torch.randn(4, 3, 32, 32))
    return network.eval()


def nas_bench_201():
    from nas.spaces.nas_bench_201 import NasBench201

    return space_network(NasBench201(ops=load_ops("nas_bench_201"), channels=4, cells=2))


def darts():
    space = Darts(ops=load_ops("darts"), channels=4, cells=6, auxiliary=True)
    return without_auxiliary(space_network(space, PUBLISHED["DARTS_V2"]))


def mbconv():
    return space_network(MBConv(ops=load_ops("mbconv"), widths=(4, 8), depths=(2, 3), strides=(1, 2), head=16))


SPACES = {"nas_bench_201": nas_bench_201, "darts": darts, "mbconv": mbconv}


def frozen(model, pick=0):
    from nas.supernet.choice import choices

    chosen = {key: sharing[0].names[pick % len(sharing[0].names)] for key, sharing in choices(model).items()}
    return freeze(model, chosen).eval()


def written(network, *inputs, spec=IMAGES):
    return source(network.eval(), inputs, title="A network", spec=spec, weights="weights.safetensors")


def executed(text):
    namespace = {"__name__": "model", "__file__": "model.py"}
    exec(compile(text, "model.py", "exec"), namespace)
    return namespace


@torch.no_grad()
def assert_same(network, *inputs, spec=IMAGES):
    """The source gives a network with the same names of weights and the very bits. Returns the source."""
    text = written(network, *inputs, spec=spec)
    again = executed(text)["build"]()
    again.load_state_dict(network.state_dict())
    again.eval()
    for count in (1, len(inputs[0])):
        some = [tensor[:count] for tensor in inputs]
        assert torch.equal(again(*some), network(*some))
    return text


@pytest.fixture(scope="module", params=SPACES)
def space(request):
    torch.manual_seed(0)
    network = SPACES[request.param]()
    return request.param, network, assert_same(network, torch.randn(3, 3, 32, 32))


def test_the_source_of_every_space_is_plain_pytorch(space):
    _, _, text = space
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else name.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported == {"pathlib", "torch", "torch.nn.functional", "safetensors.torch"}
    assert not re.search(r"\bnas\b|drop_path|DropPath|auxiliary|Choice|self\.training", text)


def test_modules_that_are_alike_are_one_class(space):
    name, network, text = space
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    cells = [cell for cell in classes if re.fullmatch(r"(NasBench201|Darts)Cell\d*", cell)]
    # Of DARTS: a normal cell, a reduction, and a normal cell after a reduction, which halves one of its inputs.
    assert len(cells) == {"nas_bench_201": 1, "darts": 3, "mbconv": 0}[name]
    assert len(text.splitlines()) < 3 * sum(1 for _ in network.modules())


def test_the_source_is_formatted_and_clean(space, tmp_path):
    ruff = shutil.which("ruff", path=f"{sys.prefix}/bin") or shutil.which("ruff")
    if ruff is None:
        pytest.skip("needs ruff")
    (tmp_path / "model.py").write_text(space[2])
    for arguments in (["format", "--check", "--diff"], ["check", "--select=E,F,I,B,UP,SIM,RET", "--ignore=E501"]):
        done = subprocess.run(
            [ruff, *arguments, "--isolated", tmp_path / "model.py"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_images_are_prepared_as_for_the_network():
    from nas.data.transforms import normalise

    model = executed(written(nn.Flatten(), torch.zeros(2, 3, 32, 32)))
    assert model["CLASSES"] == IMAGES.class_names
    images = torch.randint(256, (2, 3, 32, 32)).byte()
    expected = normalise(images, mean=torch.tensor(IMAGES.mean), std=torch.tensor(IMAGES.std))
    assert torch.equal(model["prepare"](images), expected)


@pytest.mark.parametrize("pick", range(3))
def test_models_of_ones_own(pick):
    x = torch.randn(3, 3, 8, 8)
    assert_same(frozen(custom_models.Depths(3, 4, True), pick), x)
    assert_same(frozen(custom_models.shared_key(IMAGES, True), pick), x)
    assert_same(frozen(custom_models.nested(4, 3, True), pick), x)
    assert_same(frozen(custom_models.Signals(1, 3, True), pick), torch.randn(3, 1, 24), spec=VALUES)


@pytest.mark.parametrize("pick", range(2))
def test_a_model_of_two_inputs(pick):
    class Spec:
        input_shapes = ((3,), (4,))

    network = frozen(custom_models.TwoInputs(Spec()), pick)
    text = assert_same(network, torch.randn(3, 3), torch.randint(5, (3, 4)), spec=VALUES)
    assert "def forward(self, vector, tokens):" in text
    assert "prepare" not in text


class Scaled(nn.Module):
    """Weights and a buffer of its own, and an attribute that differs between its instances."""

    def __init__(self, width, power):
        super().__init__()
        self.power = power
        self.scale = nn.Parameter(torch.randn(width))
        self.register_buffer("shift", torch.randn(width))
        self.register_parameter("nothing", None)

    def forward(self, x, *, by=None):
        assert by is None
        return (x**self.power * self.scale + self.shift)[:, :, None].transpose(1, 2).flatten(1)


class Pair(nn.Module):
    """Inputs and outputs that are no tensors."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"left": nn.Linear(4, 4), "right one": nn.Linear(4, 4, bias=False)})

    def forward(self, pair):
        return [self.parts["left"](pair[0]), self.parts["right one"](pair[1])]


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.scaled = nn.ModuleList([Scaled(4, power) for power in (1, 2, 2)])
        self.pair = Pair()
        self.unused = nn.Linear(4, 2)  # with weights that the file has to find a place for
        self.named = nn.Sequential()
        self.named.add_module("act", nn.ReLU(inplace=True))
        self.named.add_module("out", nn.Linear(4, 2))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        for scaled in self.scaled:
            x = scaled(x)
        a, b = self.pair((x, -x))
        y = a + torch.where(b > 0.5, b, 1 - b)
        y -= a.mean(dim=-1, keepdim=True)
        y = self.dropout(y)
        z = y.view(-1, 4)
        z.clamp_(max=2.0)
        return self.named(torch.cat([y[:, :2], y[..., 2:]], dim=1)) + z.sum()


def test_everything_else_that_modules_do():
    text = assert_same(Mixed(), torch.randn(5, 4), spec=VALUES)
    assert "def __init__(self, power):" in text
    assert "x**self.power" in text.replace("x ** self.power", "x**self.power")
    assert 'self.pair.parts["right one"]' in text


class Functions(nn.Module):
    """Functions of torch whose signature is not known, or that have another name than they are called by."""

    def forward(self, x):
        y = F.max_pool2d(x, 3, stride=1) + F.adaptive_max_pool2d(x, 2, return_indices=True)[0]
        return F.logsigmoid(y) + torch.linalg.norm(y, dim=1, keepdim=True) + torch.fft.fft2(y).real + abs(y)


def test_functions_are_called_by_their_public_names():
    text = assert_same(Functions(), torch.randn(3, 2, 4, 4), spec=VALUES)
    assert "F.max_pool2d(" in text
    assert "F.logsigmoid(" in text


class Doubles(nn.Module):
    def forward(self, x):
        return x.mul_(2)


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.depth, self.doubles = nn.Linear(4, 4), StochasticDepth(0.5, "row"), Doubles()

    def forward(self, x):
        return self.doubles(self.linear(x)) + self.depth(x)


def test_what_gives_back_its_input_is_not_looked_into_unless_it_changes_the_input():
    assert "depth" not in assert_same(Deep(), torch.randn(3, 4), spec=VALUES)


class Builtins(nn.Module):
    """Its arguments are called as builtins, and as what fx would call those instead."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, input, input_1, *, max):
        return torch.relu(self.linear(input)) + input_1 * input - max


class CallsBuiltins(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Builtins()

    def forward(self, input):
        return self.inner(input, 2 * input, max=input.sum())


def test_arguments_that_are_called_as_builtins_keep_their_names():
    text = assert_same(CallsBuiltins(), torch.randn(5, 4), spec=VALUES)
    assert "def forward(self, input, input_1, max):" in text


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0].mean(1)


def test_what_is_inside_of_a_layer_of_torch_is_made_by_it():
    text = assert_same(Attends(), torch.randn(3, 5, 4), spec=VALUES)
    assert re.findall(r"^class (\w+)", text, re.MULTILINE) == ["Attends"]


class Sized(nn.Module):
    def forward(self, x):
        return x[: len(x)]


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.constant = torch.ones(4)

    def forward(self, x):
        return x + self.constant


def hooked():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return layer


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.scaled = Scaled(4, 1)

    def forward(self, x):
        return self.scaled(x) + self.scaled(x, by=None)


class Flexible(nn.Module):
    def forward(self, x, y=1):
        return x + y


class Reordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Flexible()

    def forward(self, x):
        return self.part(x) + self.part(x, x)


class Many(nn.Module):
    def forward(self, *inputs):
        return inputs[0] + 1


class Encodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x):
        return self.encoder(x[:, None])[:, 0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 4)

    def forward(self, x):
        return self.rnn(x)[0]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Sized(), "the forward of Sized cannot be traced"),
        (Held(), "Held holds a tensor at constant that is not a parameter or buffer"),
        (hooked(), "a Linear has hooks"),
        (Twice(), "Scaled has weights of its own, and is not called with tensors alone"),
        (Reordered(), "a Flexible is called with different arguments"),
        (Many(), "Many takes or returns something other than tensors"),
        (Recurrent(), r"nn\.GRU"),
        (Encodes(), r"it is not known how nn\.TransformerEncoderLayer was made"),
    ],
)
def test_what_cannot_be_written_says_so(network, message):
    with pytest.raises(UnsupportedError, match=message):
        written(network, torch.zeros(2, 4), spec=VALUES)
