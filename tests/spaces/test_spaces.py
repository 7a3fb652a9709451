import dataclasses
import re

import pytest
import torch
from torch import nn

from nas.errors import ConfigError, GenotypeError
from nas.methods.sampler import GDAS
from nas.spaces.cell import DropPath, set_drop_path
from nas.spaces.darts import PUBLISHED, Darts, DartsCell
from nas.spaces.mixed_edges import MixedEdges
from nas.spaces.nas_bench_201 import NasBench201, NasBench201Cell
from nas.spaces.space import Space
from nas.supernet.choice import Choice, choices, gates
from nas.supernet.freezing import freeze
from nas.supernet.genotype import Genotype
from nas.training.evaluate import count_parameters


def cifar(spec, **changes):
    return dataclasses.replace(spec, input_shapes=((3, 32, 32),), class_names=tuple("0123456789"), **changes)


def from_string(text):
    """NAS-Bench-201's own notation to a genotype."""
    choices = {}
    for node, incoming in enumerate(text.split("+"), 1):
        for op, source in re.findall(r"([^|~]+)~(\d)", incoming):
            choices[f"cell/{source}-{node}"] = op
    return Genotype("nas_bench_201", choices)


def run(supernet, images, seed=0):
    """A forward pass with drawn gates."""
    found = choices(supernet)
    logits = torch.zeros(len(found), max(len(c[0].names) for c in found.values()))
    drawn = GDAS()(logits, 1.0, torch.Generator().manual_seed(seed))
    with gates(found, drawn.by_key(list(found), differentiable=True)):
        return supernet(images)


# -- the published networks, parameter by parameter


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        (
            "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
            1_531_546,
        ),
        (
            "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|",
            1_073_466,
        ),
        ("|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|", 559_386),
        (
            "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|",
            73_306,
        ),
    ],
)
def test_parameters_of_nas_bench_201(architecture, parameters, ops_tables, spec):
    space = NasBench201(ops=ops_tables["nas_bench_201"])  # the defaults are the published size
    with torch.device("meta"):
        network = space.network(cifar(spec), from_string(architecture))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert count_parameters(network) == parameters


@pytest.mark.parametrize(
    ("name", "parameters", "auxiliary"),
    [
        ("DARTS_V1", 3_169_414, True),
        pytest.param("DARTS_V2", 3_349_342, True, marks=pytest.mark.long),
        pytest.param("DARTS_V2", 3_349_342, False, marks=pytest.mark.long),
    ],
)
def test_parameters_of_darts(name, parameters, auxiliary, ops_tables, spec):
    space = Darts(ops=ops_tables["darts"]).resized({"channels": 36, "cells": 20, "auxiliary": auxiliary})
    with torch.device("meta"):
        network = space.network(cifar(spec), PUBLISHED[name])
    assert count_parameters(network) == parameters
    assert sum(p.numel() for p in network.parameters()) == parameters + auxiliary * 476_426
    if auxiliary:
        assert sum(p.numel() for p in network.auxiliary.parameters()) == 476_426


# -- keys


def test_keys_of_nas_bench_201(nas_bench_201, spec):
    options = nas_bench_201.options(spec)
    assert list(options) == [f"cell/{edge}" for edge in ("0-1", "0-2", "1-2", "0-3", "1-3", "2-3")]
    assert set(options.values()) == {("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")}


def test_keys_of_darts(darts, spec):
    options = darts.options(spec)
    edges = [f"{source}-{node}" for node in range(2, 6) for source in range(node)]
    assert list(options) == [f"{kind}/{edge}" for kind in ("normal", "reduce") for edge in edges]
    assert all(len(names) == 8 for names in options.values())


@pytest.mark.parametrize(
    ("name", "larger"),
    [
        ("nas_bench_201", {"cells": 5, "channels": 16}),
        ("darts", {"cells": 8, "channels": 16}),
        pytest.param("darts", {"cells": 20, "channels": 36}, marks=pytest.mark.long),
    ],
)
def test_keys_are_independent_of_depth_and_width(name, larger, request, spec):
    space = request.getfixturevalue(name)
    assert space.resized(larger).options(spec) == space.options(spec)


def test_a_genotype_of_the_small_space_fits_the_large_one(space, spec):
    chosen = {key: names[-1] for key, names in space.options(spec).items()}
    with torch.device("meta"):
        space.resized({"cells": 7, "channels": 8}).network(spec, Genotype(space.name, chosen))


def test_options_are_those_of_the_supernet(space, spec):
    found = choices(space.supernet(spec))
    assert {key: sharing[0].names for key, sharing in found.items()} == space.options(spec)


def test_edges_into_one_node_form_a_group(space, spec):
    for key, sharing in choices(space.supernet(spec)).items():
        kind, edge = key.split("/")
        assert sharing[0].group == f"{kind}/{edge.split('-')[1]}"


def test_only_shared_logits_and_no_affine_in_the_candidates_of_a_supernet(space, spec):
    supernet = space.supernet(spec)
    for sharing in choices(supernet).values():
        for choice in sharing:
            assert not any(p.dim() == 1 for p in choice.parameters())


# -- the DARTS skeleton


@pytest.mark.parametrize("cells", [3, 4, 5, 6, 8])
def test_reductions_are_at_one_and_two_thirds(cells, darts, spec):
    with torch.device("meta"):
        network = darts.resized({"cells": cells}).build(spec, affine=True)
    kinds = [next(m for m in cell.modules() if isinstance(m, Choice)).key.split("/")[0] for cell in network.cells]
    assert [index for index, kind in enumerate(kinds) if kind == "reduce"] == [cells // 3, 2 * cells // 3]


@pytest.mark.parametrize("cells", [3, 8])
def test_resolution_and_channels_of_every_cell(cells, darts, spec):
    network = darts.resized({"cells": cells}).supernet(spec).eval()
    shapes = []
    for cell in network.cells:
        cell.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        run(network, torch.randn(2, *spec.input_shape))
    expected = []
    for index in range(cells):
        halvings = (index >= cells // 3) + (index >= 2 * cells // 3)
        expected.append((4 * 4 << halvings, 8 >> halvings, 8 >> halvings))
    assert shapes == expected


# -- a cell by hand


class Scale(nn.Module):
    """factor * every stride-th pixel."""

    def __init__(self, factor, stride):
        super().__init__()
        self.factor, self.stride = factor, stride

    def forward(self, x):
        return self.factor * x[:, :, :: self.stride, :: self.stride]


def scaling_ops():
    """Factors that tell every edge and operation apart in the sums below."""
    return {
        f"x{factor}": (lambda c_in, c_out, stride, affine, f=factor: Scale(float(f), stride)) for factor in (1, 2, 3, 5)
    }


def test_the_cell_of_nas_bench_201_by_hand():
    cell = NasBench201Cell(MixedEdges(ops=scaling_ops(), affine=False), channels=2, nodes=4)
    frozen = freeze(
        cell,
        {"cell/0-1": "x2", "cell/0-2": "x3", "cell/1-2": "x5", "cell/0-3": "x1", "cell/1-3": None, "cell/2-3": "x3"},
    )
    # node 1 = 2, node 2 = 3 + 5 * 2 = 13, node 3 = 1 + 0 + 3 * 13 = 40
    x = torch.arange(8.0).view(1, 2, 2, 2)
    assert torch.equal(frozen(x), 40 * x)


def identity_preprocessing(cell):
    cell.eval()
    with torch.no_grad():
        for block in (cell.preprocess_before_last, cell.preprocess_last):
            for module in block.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_var.fill_(1 - module.eps)
                elif isinstance(module, nn.Conv2d):
                    module.weight.copy_(torch.eye(*module.weight.shape[:2])[:, :, None, None])
    return cell


@pytest.mark.parametrize("reduction", [False, True])
def test_the_cell_of_darts_by_hand(reduction):
    cell = DartsCell(
        MixedEdges(ops=scaling_ops(), affine=False),
        steps=2,
        c_before_last=2,
        c_last=2,
        channels=2,
        reduction=reduction,
        after_reduction=False,
    )
    kind = "reduce" if reduction else "normal"
    chosen = {"0-2": "x2", "1-2": "x3", "0-3": "x5", "1-3": "x1", "2-3": "x3"}
    frozen = freeze(identity_preprocessing(cell), {f"{kind}/{edge}": name for edge, name in chosen.items()})
    before_last = torch.rand(1, 2, 4, 4)
    last = torch.rand(1, 2, 4, 4) + 10
    # Only edges from the two inputs reduce: node 2 has the final resolution already.
    a, b = (x[:, :, ::2, ::2] if reduction else x for x in (before_last, last))
    node_2 = 2 * a + 3 * b
    node_3 = 5 * a + b + 3 * node_2
    assert torch.allclose(frozen(before_last, last), torch.cat([node_2, node_3], dim=1))


def test_the_cell_after_a_reduction_halves_its_older_input():
    cell = DartsCell(
        MixedEdges(ops=scaling_ops(), affine=False),
        steps=1,
        c_before_last=2,
        c_last=4,
        channels=4,
        reduction=False,
        after_reduction=True,
    )
    frozen = freeze(identity_preprocessing(cell), {"normal/0-2": "x1", "normal/1-2": "x1"})
    before_last, last = torch.rand(1, 2, 4, 4), torch.rand(1, 4, 2, 2)
    reduced = torch.cat([before_last[:, :, ::2, ::2], before_last[:, :, 1::2, 1::2]], dim=1)
    assert torch.allclose(frozen(before_last, last), reduced + last)


# -- what does not fit


@pytest.mark.parametrize(("name", "other"), [("nas_bench_201", "darts"), ("darts", "nas_bench_201"), ("darts", "mine")])
def test_a_genotype_of_another_space(name, other, request, spec):
    with pytest.raises(GenotypeError, match=f"of the space '{other}', expected '{name}'; .*space={other}"):
        request.getfixturevalue(name).network(spec, Genotype(other, {}))


def test_a_genotype_that_lacks_a_choice(space, spec):
    with pytest.raises(GenotypeError, match="lacks"):
        space.network(spec, Genotype(space.name, {}))


def test_resized_does_not_know_the_field(space):
    with pytest.raises(ConfigError, match=rf"retrain\.network sets chanels, .*{space.name} does not have; .*channels"):
        space.resized({"chanels": 3})


def test_resized_leaves_the_original_alone(space):
    assert space.resized({"channels": 9}).channels == 9
    assert space.channels == 4


@pytest.mark.parametrize(
    ("name", "size", "minimum"),
    [
        ("nas_bench_201", "channels", 1),
        ("nas_bench_201", "cells", 1),
        ("nas_bench_201", "nodes", 2),
        ("darts", "channels", 1),
        ("darts", "cells", 3),
        ("darts", "steps", 1),
        ("darts", "stem_multiplier", 1),
    ],
)
def test_sizes_below_their_minimum(name, size, minimum, request, spec):
    space = request.getfixturevalue(name)
    for value in (minimum - 1, -1, 2.5, True, "4", None):
        with pytest.raises(ConfigError, match=rf"space\.{size} must be an integer >= {minimum}, got {value!r}"):
            space.resized({size: value})
    smallest = space.resized({size: minimum})
    assert run(smallest.supernet(spec), torch.randn(2, *spec.input_shape)).shape == (2, 3)


def test_the_smallest_of_everything(ops_tables, spec):
    for space in (
        NasBench201(ops=ops_tables["nas_bench_201"], channels=1, cells=1, nodes=2),
        Darts(ops=ops_tables["darts"], channels=1, cells=3, steps=1, stem_multiplier=1),
    ):
        assert run(space.supernet(spec), torch.randn(2, *spec.input_shape)).shape == (2, 3)


# -- auxiliary head


def test_the_auxiliary_head_answers_in_training_only(darts, spec):
    space = darts.resized({"auxiliary": True})
    spec = cifar(spec)
    genotype = PUBLISHED["DARTS_V1"]
    network = space.network(spec, genotype)
    images = torch.randn(2, *spec.input_shape)
    scores, auxiliary = network.train()(images)
    assert scores.shape == auxiliary.shape == (2, 10)
    # It reads the reduction at two thirds and must train that far.
    auxiliary.sum().backward()
    assert network.stem[0].weight.grad is not None
    assert isinstance(network.eval()(images), torch.Tensor)
    assert isinstance(darts.network(spec, genotype).train()(images), torch.Tensor)


def test_the_auxiliary_head_does_not_change_the_scores(darts, spec):
    spec = cifar(spec)
    with_head = darts.resized({"auxiliary": True}).network(spec, PUBLISHED["DARTS_V2"])
    without = darts.network(spec, PUBLISHED["DARTS_V2"])
    without.load_state_dict({k: v for k, v in with_head.state_dict().items() if not k.startswith("auxiliary.")})
    images = torch.randn(2, *spec.input_shape)
    assert torch.equal(with_head.eval()(images), without.eval()(images))


@pytest.mark.parametrize("size", [(28, 28), (32, 31), (8, 32)])
def test_the_auxiliary_head_refuses_small_images(size, darts, spec):
    spec = dataclasses.replace(spec, input_shapes=((3, *size),))
    with pytest.raises(ConfigError, match=rf"at least 32x32, got {size[0]}x{size[1]}; .*auxiliary=false"):
        darts.resized({"auxiliary": True}).build(spec, affine=True)


# -- drop-path


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_drop_path_preserves_the_expectation_and_drops_whole_samples(rate):
    samples = 20_000
    drop = DropPath()
    set_drop_path(drop, rate)
    x = torch.rand(samples, 2, 2, 2) + 0.5
    factor = drop(x) / x
    assert torch.allclose(factor, factor[:, :1, :1, :1].expand_as(factor))  # one decision a sample
    factor = factor[:, 0, 0, 0]
    dropped = factor == 0
    assert torch.allclose(factor[~dropped], torch.tensor(1 / (1 - rate)))
    deviation = (rate * (1 - rate) / samples) ** 0.5
    assert dropped.double().mean().item() == pytest.approx(rate, abs=4 * deviation)
    assert factor.double().mean().item() == pytest.approx(1.0, abs=4 * deviation / (1 - rate))


def test_drop_path_does_nothing_in_eval_or_at_rate_zero():
    drop, x = DropPath(), torch.randn(8, 1, 1, 1)
    assert drop(x) is x
    set_drop_path(drop, 0.9)
    assert drop.eval()(x) is x


def genotype_of(space, spec, name):
    return Genotype(space.name, dict.fromkeys(space.options(spec), name))


def test_identity_edges_are_never_dropped(nas_bench_201, spec):
    network = nas_bench_201.network(spec, genotype_of(nas_bench_201, spec, "skip_connect")).train()
    images = torch.randn(16, *spec.input_shape)
    expected = network(images)
    set_drop_path(network, 0.999)
    assert torch.equal(network(images), expected)


@pytest.mark.parametrize(("name", "op"), [("nas_bench_201", "nor_conv_1x1"), ("darts", "sep_conv_3x3")])
def test_other_edges_are_dropped_in_training_only(name, op, request, spec):
    space = request.getfixturevalue(name)
    network = space.network(spec, genotype_of(space, spec, op)).train()
    images = torch.randn(16, *spec.input_shape)
    expected = network(images)
    set_drop_path(network, 0.999)
    assert not torch.equal(network(images), expected)
    at_rate = network.eval()(images)
    set_drop_path(network, 0.0)
    assert torch.equal(network(images), at_rate)


# -- sizes of images


@pytest.mark.parametrize("size", [(7, 7), (28, 28), (7, 10), (1, 1), (2, 3)])
def test_any_size_of_image(size, space, spec):
    spec = dataclasses.replace(spec, input_shapes=((1, *size),), mean=(0.5,), std=(0.5,))
    supernet = space.supernet(spec)
    for seed in range(3):
        scores = run(supernet, torch.randn(4, *spec.input_shape), seed)
        assert scores.shape == (4, 3)
        assert scores.isfinite().all()


def test_every_operation_on_every_edge_runs(space, spec):
    images = torch.randn(2, *spec.input_shape)
    for position, name in enumerate(next(iter(space.options(spec).values()))):
        model = space.build(spec, affine=position % 2 == 0)  # test_ops.py runs each with both
        frozen = freeze(model, dict.fromkeys(choices(model), name))
        assert frozen(images).isfinite().all()


def test_channels_last_changes_nothing_but_the_layout(space, spec):
    images = torch.randn(4, *spec.input_shape)
    supernet = space.supernet(spec).double().eval()
    expected = run(supernet, images.double(), seed=3)
    got = run(supernet.to(memory_format=torch.channels_last), images.double(), seed=3)
    assert torch.allclose(got, expected, rtol=1e-9)


def test_a_space_whose_sizes_are_no_fields_is_refused():
    class Mine(Space):
        name = "mine"

        def __init__(self, width=4):
            self.width = width

        def build(self, spec, *, affine):
            return nn.Linear(self.width, spec.num_classes)

    with pytest.raises(ConfigError, match="mine has a constructor of its own that takes width, expected fields"):
        Mine(width=8).resized({})  # which made a space of width 4


def test_a_space_of_ones_own_may_read_values_of_tensors_as_it_builds(spec):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Rates(Space):
        name = "rates"

        def build(self, spec, *, affine):
            return Choice({f"{rate:g}": nn.Dropout(rate) for rate in torch.linspace(0, 0.5, 2).tolist()})

    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert Rates().options(spec) == {"choice": ("0", "0.5")}
    assert torch.equal(torch.get_rng_state(), before)
