"""S1 to S4 (Zela et al. 2020) and the MBConv space (Cai et al. 2019): tables, operations and hand-made networks."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from nas.cli import run as nas_run
from nas.cli.stages.retrain import RetrainStage
from nas.cli.stages.search import SearchStage
from nas.cli.stages.setup import Setup
from nas.data.spec import ImageSpec
from nas.errors import ConfigError, GenotypeError, SpaceError
from nas.settings import configuration, schemas
from nas.spaces.darts import Darts
from nas.spaces.edge_ops import EdgeOps
from nas.spaces.mbconv import MBConv
from nas.spaces.mixed_edges import MixedEdges
from nas.spaces.nas_bench_201 import NasBench201
from nas.spaces.ops import InvertedResidual, Noise
from nas.storage.run_directory import RunDirectory
from nas.supernet.choice import Choice, choices
from nas.supernet.freezing import freeze
from nas.supernet.genotype import Genotype
from nas.training.evaluate import count_parameters

SMALL = [
    "name=test",
    "data=synthetic",
    "data.train=32",
    "data.test=8",
    "runtime.device=cpu",
    "runtime.threads=1",
    "tracker=jsonl",
    "search.epochs=1",
    "search.batch_size=8",
    "retrain.epochs=1",
    "retrain.batch_size=16",
]
DARTS = [*SMALL, "space=darts", "space.channels=2", "space.cells=3", "space.stem_multiplier=1"]
MBCONV = [*SMALL, "space=mbconv", "space.widths=[4,6]", "space.depths=[2,2]", "space.strides=[1,2]"]
MBCONV += ["space.stem=4", "space.first=4", "space.head=8"]
EDGES = [f"{source}-{node}" for node in range(2, 6) for source in range(node)]

# Zela et al. 2020, appendix: node by node, predecessors in order.
S1_NORMAL = """
    skip_connect,dil_conv_3x3 skip_connect,dil_conv_5x5
    skip_connect,dil_conv_5x5 skip_connect,sep_conv_3x3 skip_connect,dil_conv_3x3
    max_pool_3x3,skip_connect skip_connect,sep_conv_3x3 skip_connect,sep_conv_3x3 skip_connect,dil_conv_3x3
    skip_connect,sep_conv_3x3 max_pool_3x3,skip_connect skip_connect,dil_conv_3x3 dil_conv_3x3,dil_conv_5x5
    dil_conv_3x3,dil_conv_5x5
"""
S1_REDUCE = """
    max_pool_3x3,avg_pool_3x3 max_pool_3x3,dil_conv_3x3
    max_pool_3x3,avg_pool_3x3 max_pool_3x3,avg_pool_3x3 skip_connect,dil_conv_5x5
    max_pool_3x3,avg_pool_3x3 max_pool_3x3,sep_conv_3x3 skip_connect,dil_conv_3x3 skip_connect,dil_conv_5x5
    max_pool_3x3,avg_pool_3x3 max_pool_3x3,avg_pool_3x3 skip_connect,dil_conv_5x5 skip_connect,dil_conv_5x5
    skip_connect,dil_conv_5x5
"""


def load_ops(name):
    return configuration.build(OmegaConf.load(configuration.directory() / "ops" / f"{name}.yaml"))


def composed(command, overrides):
    schemas.register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
        return compose(command, overrides)


def tiny_spec(*, height=8, width=8, class_names=("a", "b", "c")):
    return ImageSpec(
        name="tiny",
        input_shapes=((3, height, width),),
        class_names=class_names,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def exact(model):
    """Batch norms in eval mode as the identity: their denominator is sqrt(var + eps)."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1 - module.eps)
    return model.eval()


# -- candidates by edge


def op_sets():
    s1 = [*S1_NORMAL.split(), *S1_REDUCE.split()]
    return {
        "s1": [tuple(pair.split(",")) for pair in s1],
        "s2": [("skip_connect", "sep_conv_3x3")] * 28,
        "s3": [("none", "skip_connect", "sep_conv_3x3")] * 28,
        "s4": [("noise", "sep_conv_3x3")] * 28,
    }


@pytest.mark.parametrize(("name", "expected"), op_sets().items(), ids=op_sets())
def test_every_edge_has_the_published_candidates(name, expected):
    options = Darts(ops=load_ops(name), channels=2, cells=3).options(tiny_spec())
    keys = [f"{kind}/{edge}" for kind in ("normal", "reduce") for edge in EDGES]
    assert list(options) == keys
    assert list(options.values()) == expected


@pytest.mark.parametrize("name", ["s1", "s2", "s3"])
def test_an_operation_is_the_one_of_the_darts_table(name):
    ops, darts = load_ops(name), load_ops("darts")
    assert set(ops) <= set(darts)
    for op in ops:
        for affine in (False, True):
            assert str(ops[op](4, 4, 2, affine)) == str(darts[op](4, 4, 2, affine))


def test_edge_ops_are_a_mapping_of_all_operations():
    ops = EdgeOps(ops={"a": Noise, "b": Noise, "c": Noise}, edges={"cell/0-1": ["c", "a"]})
    assert list(ops) == ["a", "b", "c"]
    assert ops["b"] is Noise
    edge = MixedEdges(ops=ops, affine=False).edge("cell", 0, 1, channels=1, stride=1)
    assert edge.names == ("c", "a")


def test_edge_ops_with_an_unknown_candidate():
    with pytest.raises(SpaceError, match="offers pool at cell/0-1, expected some of a, b; add the operation"):
        EdgeOps(ops={"a": Noise, "b": Noise}, edges={"cell/0-1": ["a", "pool"]})


@pytest.mark.parametrize(
    ("space", "key"),
    [
        (lambda ops: Darts(ops=ops, channels=2, cells=3, steps=5), "normal/0-6"),
        (lambda ops: NasBench201(ops=ops, channels=2, cells=1), "cell/0-1"),
        (lambda ops: MBConv(ops=ops), "stage0/layer0"),
    ],
)
def test_s1_fits_only_what_it_was_published_for(space, key):
    with pytest.raises(SpaceError, match=f"no candidates for {key}, only for normal/0-2, .*; use the space"):
        space(load_ops("s1")).options(tiny_spec())


@pytest.mark.parametrize("name", ["s1", *(pytest.param(name, marks=pytest.mark.long) for name in ("s2", "s3", "s4"))])
def test_search_derive_and_freeze(name, tmp_path):
    torch.manual_seed(0)
    setup = Setup.from_config(composed("search", [*DARTS, f"ops={name}"]))
    stage = SearchStage(setup)
    before = stage.state.arch.logits.detach().clone()
    out = RunDirectory(tmp_path / "run", config="", command=[], seed=0, runtime=setup.runtime)
    with out, setup.track(out) as tracker:
        genotype = stage.run(out, tracker)  # 16 images a level and a batch of 8: two steps
    assert not torch.equal(stage.state.arch.logits, before)
    assert "none" not in genotype.choices.values()
    options = setup.space.options(setup.data.spec)
    for key, chosen in genotype.choices.items():
        assert chosen is None or chosen in options[key]
    for kind in ("normal", "reduce"):
        for node in range(2, 6):
            assert sum(genotype.choices[f"{kind}/{source}-{node}"] is not None for source in range(node)) == 2

    network = setup.space.network(setup.data.spec, genotype)
    assert not any(isinstance(module, Choice) for module in network.modules())
    assert network(torch.randn(2, *setup.data.spec.input_shape)).shape == (2, 4)
    if name != "s4":  # whose noise the DARTS space does not have
        skeleton = Darts(ops=load_ops("darts"), channels=2, cells=3, stem_multiplier=1)
        retrained = skeleton.network(setup.data.spec, genotype)
        assert count_parameters(retrained) == count_parameters(network)
        RetrainStage(Setup.from_config(composed("retrain", [*DARTS, "genotype=x"]))).check(genotype)


def test_a_genotype_with_noise_needs_the_ops_it_was_derived_with():
    noisy = Genotype("darts", {f"{kind}/{edge}": "noise" for kind in ("normal", "reduce") for edge in EDGES})
    with pytest.raises(GenotypeError, match=r"'noise' at normal/0-2, expected one of none, max_pool_3x3"):
        Darts(ops=load_ops("darts"), channels=2, cells=3).network(tiny_spec(), noisy)
    Darts(ops=load_ops("s4"), channels=2, cells=3).network(tiny_spec(), noisy)


# -- noise


@pytest.mark.parametrize(("stride", "shape"), [(1, (2, 6, 7, 5)), (2, (2, 6, 4, 3))])
def test_noise_has_the_shape_of_the_other_operations(stride, shape):
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64, requires_grad=True)
    noise = Noise(4, 6, stride, False)(x)
    assert noise.shape == shape
    assert noise.dtype == torch.float64
    assert not noise.requires_grad  # nothing of the input is left


@pytest.mark.parametrize("training", [True, False])
def test_noise_is_standard_normal_and_fresh(training):
    torch.manual_seed(0)
    op = Noise(1, 1, 1, False).train(training)
    x = torch.full((1, 1, 200, 200), 100.0)
    first, second = op(x), op(x)
    assert not torch.equal(first, second)
    # 40,000 values: the mean is off by 0.005 and the moments by 0.007 and 0.024 at one standard deviation.
    assert first.mean().item() == pytest.approx(0, abs=0.02)
    assert first.pow(2).mean().item() == pytest.approx(1, abs=0.03)
    assert first.pow(4).mean().item() == pytest.approx(3, abs=0.2)
    torch.manual_seed(0)
    assert torch.equal(op(x), first)


def test_the_cell_of_s4_by_hand():
    torch.manual_seed(0)
    edge = MixedEdges(ops=load_ops("s4"), affine=False).edge("normal", 0, 2, channels=1, stride=1)
    frozen = freeze(nn.Sequential(edge), {"normal/0-2": "sep_conv_3x3"})
    convs = [module for module in frozen.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for conv, weight in zip(convs, (1.0, 2.0, 3.0, -1.0), strict=True):
            conv.weight.fill_(weight)
    x = torch.tensor([[1.0, -1.0], [2.0, 0.0]])[None, None]
    # ReLU leaves 1, 0, 2, 0, whose sum 3 is what each 3x3 window sees; times 2; four of it in each window; times 3, -1.
    assert torch.allclose(exact(frozen)(x), torch.full((1, 1, 2, 2), 4 * 3.0 * 2 * 3 * -1))


# -- inverted residuals


@pytest.mark.parametrize("expansion", [1, 2])
@pytest.mark.parametrize(("stride", "c_out"), [(1, 1), (1, 2), (2, 1)])
def test_inverted_residual_by_hand(expansion, stride, c_out):
    block = InvertedResidual(1, c_out, stride, True, kernel_size=3, expansion=expansion)
    convs = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == (2 if expansion == 1 else 3)
    with torch.no_grad():
        if expansion == 2:
            convs[0].weight.copy_(torch.tensor([3.0, -1.0]).view(2, 1, 1, 1))
        convs[-2].weight.fill_(1.0)
        convs[-1].weight.fill_(-0.5)
    x = torch.tensor([[1.0, 3.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])[None, None]
    got = exact(block)(x)
    # Expanded by 3 and -1 and clipped to [0, 6]: 3, 6 and nothing below; the other channel has 1 where x is -1.
    # 3x3 sums, clipped: 6 wherever the window meets the 6, and 1 around the -1. Projected by -0.5 each.
    # Not expanded it is the sums of x itself: 3 in the upper rows, -1, -1 and 0 in the lowest, clipped to 0.
    sums = {2: [[6 + 1, 6 + 1, 6], [6 + 1, 6 + 1, 6], [1, 1, 0]], 1: [[3, 3, 3], [3, 3, 3], [0, 0, 0]]}[expansion]
    expected = (-0.5 * torch.tensor(sums, dtype=torch.float32))[::stride, ::stride].expand(1, c_out, -1, -1)
    assert torch.allclose(got, expected + x if (stride, c_out) == (1, 1) else expected)


@pytest.mark.parametrize("affine", [True, False])
def test_affine_is_handed_to_every_norm(affine):
    block = InvertedResidual(2, 2, 1, affine, kernel_size=5, expansion=3)
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.affine for norm in norms] == [affine] * 3
    assert [module.kernel_size[0] for module in block.modules() if isinstance(module, nn.Conv2d)] == [1, 5, 1]


# -- the MBConv space


def mbconv(**changes):
    sizes = {"stem": 4, "first": 4, "widths": [4, 6], "depths": [2, 2], "strides": [1, 2], "head": 8}
    return MBConv(ops=load_ops("mbconv"), **{**sizes, **changes})


def test_layers_that_keep_the_shape_may_be_left_out():
    blocks = tuple(f"mbconv_{kernel}x{kernel}_e{expansion}" for expansion in (3, 6) for kernel in (3, 5, 7))
    assert mbconv().options(tiny_spec()) == {
        "stage0/layer0": (*blocks, "skip_connect"),  # 4 channels to 4, stride 1
        "stage0/layer1": (*blocks, "skip_connect"),
        "stage1/layer0": blocks,
        "stage1/layer1": (*blocks, "skip_connect"),
    }
    assert set(mbconv(skip=False).options(tiny_spec()).values()) == {blocks}


def test_the_configured_default_is_that_of_the_class():
    space = configuration.build(composed("search", [*SMALL, "space=mbconv"]).space)
    default = MBConv(ops=space.ops)
    for name in ("stem", "stem_stride", "first", "head", "skip"):
        assert getattr(space, name) == getattr(default, name)
    for name in ("widths", "depths", "strides"):
        assert tuple(getattr(space, name)) == getattr(default, name)


def test_the_default_ends_a_cifar_image_in_four_by_four():
    spec = tiny_spec(height=32, width=32)
    space = MBConv(ops=load_ops("mbconv"))
    assert len(space.options(spec)) == 21
    with torch.device("meta"):
        network = space.network(spec, Genotype("mbconv", dict.fromkeys(space.options(spec), "mbconv_7x7_e6")))
        shape = network.tail(network.layers(network.stem(torch.empty(2, *spec.input_shape)))).shape
    assert shape == (2, 1280, 4, 4)


def mobilenet_v2():
    """Its torchvision implementation, and the same network as a genotype of the space."""
    from torchvision.models import mobilenet_v2

    spec = tiny_spec(height=64, width=64, class_names=tuple(map(str, range(1000))))
    space = MBConv(
        ops=load_ops("mbconv"),
        stem_stride=2,
        widths=(24, 32, 64, 96, 160, 320),
        depths=(2, 3, 4, 3, 3, 1),
        strides=(2, 2, 2, 1, 2, 1),
    )
    genotype = Genotype("mbconv", dict.fromkeys(space.options(spec), "mbconv_3x3_e6"))
    return mobilenet_v2(), space.network(spec, genotype)


def test_mobilenet_v2_is_a_point_of_the_space():
    reference, network = mobilenet_v2()
    assert count_parameters(network) == count_parameters(reference) == 3_504_872
    theirs, ours = reference.state_dict(), network.state_dict()
    assert [value.shape for value in theirs.values()] == [value.shape for value in ours.values()]
    network.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), reference.eval()(images), atol=1e-5)


def test_a_network_by_hand():
    """One channel and one pixel everywhere: every convolution is a factor, that of a kernel's centre."""
    spec = ImageSpec(name="pixel", input_shapes=((1, 1, 1),), class_names=("a", "b"), mean=(0.5,), std=(0.5,))
    space = mbconv(stem=1, first=1, widths=[1], depths=[3], strides=[1], head=1)
    chosen = {"stage0/layer0": "mbconv_3x3_e3", "stage0/layer1": "skip_connect", "stage0/layer2": "mbconv_7x7_e6"}
    network = exact(space.network(spec, Genotype("mbconv", chosen)))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 4:
                parameter.fill_(0.5)
        network.head.classifier.weight.copy_(torch.tensor([[1.0], [-2.0]]))
        network.head.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
        got = network(torch.tensor([[[[4.0]]]]))
    x = 4 * 0.5  # stem
    x = x + x * 0.5 * 0.5  # fixed block: depthwise, project
    x = x + 3 * (x * 0.5 * 0.5 * 0.5)  # expansion 3: three channels of expand, depthwise, summed by the projection
    x = x + 6 * (x * 0.5 * 0.5 * 0.5)
    assert x < 12  # so that the ReLU6 after the last convolution clips nothing
    x = x * 0.5
    assert torch.allclose(got, torch.tensor([[x, 1 - 2 * x]]))


def test_search_batch_norms_are_not_affine_and_retrained_ones_are():
    spec = tiny_spec()
    for sharing in choices(mbconv().supernet(spec)).values():
        assert not any(parameter.dim() == 1 for choice in sharing for parameter in choice.parameters())
    genotype = Genotype("mbconv", dict.fromkeys(mbconv().options(spec), "mbconv_3x3_e3"))
    network = mbconv().network(spec, genotype)
    assert not any(isinstance(module, Choice) for module in network.modules())
    assert all(module.affine for module in network.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [4]}, "must have a value for each stage, got"),
        ({"widths": [], "depths": [], "strides": []}, "must have a value for each stage, got"),
        ({"depths": [2, 0]}, r"space\.depths\[1\] must be an integer >= 1, got 0"),
        ({"strides": [1, 0.5]}, r"space\.strides\[1\] must be an integer >= 1, got 0\.5"),
        ({"stem": 0}, r"space\.stem must be an integer >= 1"),
    ],
)
def test_sizes_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        mbconv(**changes)


def test_a_genotype_of_a_deeper_network_does_not_fit():
    genotype = Genotype("mbconv", dict.fromkeys(mbconv().options(tiny_spec()), "mbconv_3x3_e3"))
    with pytest.raises(GenotypeError, match="has unknown stage1/layer1"):
        mbconv(depths=[2, 1]).network(tiny_spec(), genotype)


@pytest.mark.long
def test_the_whole_job_in_the_mbconv_space(tmp_path):
    nas_run.run(composed("run", [*MBCONV, "formats=[program]"]), tmp_path / "run")
    assert (tmp_path / "run" / "export" / "model.pt2").is_file()
