"""Mixed precision, the step from gradients to weights, and compiled retraining."""

import copy

import pytest
import torch
from searchers import build_searcher
from torch import nn

from nas.errors import ConfigError
from nas.methods.first_order import FirstOrder
from nas.methods.sampler import GDAS, Softmax, Uniform
from nas.methods.second_order import SecondOrder
from nas.runtime.precision import Precision, take_step
from nas.runtime.runtime import Runtime
from nas.spaces.cell import set_drop_path
from nas.spaces.darts import PUBLISHED
from nas.supernet.arch_params import ArchParams
from nas.supernet.genotype import Genotype
from nas.supernet.hard_gate import pass_through
from nas.training.loop import RetrainState, TrainingStep
from nas.training.task import Classification

MIXED = ["bf16", "fp16"]


def searcher(space, spec, precision, *, sampler=None, cls=FirstOrder):
    torch.manual_seed(0)
    supernet = space.supernet(spec)
    arch = ArchParams.from_model(supernet, generator=torch.Generator().manual_seed(0))
    return build_searcher(
        cls,
        supernet=supernet,
        arch=arch,
        sampler=sampler or GDAS(),
        weight_optim=torch.optim.SGD(supernet.parameters(), lr=0.05, momentum=0.9),
        arch_optim=torch.optim.Adam(arch.parameters(), lr=0.01),
        generator=torch.Generator().manual_seed(3),
        precision=Precision(precision),
    )


def batch(spec, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, *spec.input_shapes[0], generator=generator)
    return images, torch.randint(spec.num_classes, (size,), generator=generator)


def test_an_unknown_precision_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"must be one of fp32, bf16, fp16, got 'half'; set runtime.precision=bf16"):
        Precision("half")


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_a_matrix_product_is_computed_in_the_precision(name, dtype):
    with Precision(name).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def one_step(search, spec):
    """How far a weight step and an architecture step move the weights and the logits. In fp16 some come to nothing
    until the scale fits."""
    moved = []
    for parameters, take in (
        (search.weights, lambda: search.weight_step(batch(spec, size=32), 1.0)),
        ([search.arch.logits], lambda: search.arch_step(batch(spec, 1, size=32), batch(spec), 1.0)),
    ):
        drawn = search.generator.get_state()
        before = torch.cat([p.detach().flatten() for p in parameters])
        while True:
            search.generator.set_state(drawn)
            if take().grad_norm.isfinite():
                break
        moved.append(torch.cat([p.detach().flatten() for p in parameters]) - before)
    return moved


@pytest.mark.parametrize("sampler", [GDAS(), GDAS(estimator="autodl"), Softmax(), Uniform()], ids=str)
@pytest.mark.parametrize("name", MIXED)
def test_a_search_in_16_bits_takes_the_steps_of_one_in_32(nas_bench_201, spec, name, sampler):
    whole, mixed = (searcher(nas_bench_201, spec, precision, sampler=sampler) for precision in ("fp32", name))
    for search in (whole, mixed):
        search.arch_optim = torch.optim.SGD(search.arch.parameters(), lr=1.0)  # whose steps are the gradient
    for expected, found in zip(one_step(whole, spec), one_step(mixed, spec), strict=True):
        assert found.dtype == torch.float32
        if isinstance(sampler, Uniform) and len(expected) == len(whole.arch.logits.flatten()):
            assert not expected.any()
            assert not found.any()
        else:
            assert torch.cosine_similarity(expected, found, dim=0) > 0.9
            assert not torch.equal(expected, found)


def test_losses_are_scaled_in_fp16_alone():
    scales = {name: Precision(name).scaler().get_scale() for name in ("fp32", "bf16", "fp16")}
    assert scales["fp32"] == scales["bf16"] == 1
    assert scales["fp16"] > 1000


def test_a_gradient_that_overflows_moves_nothing_and_lowers_the_scale():
    weight = nn.Parameter(torch.ones(2))
    optimizer, scaler = torch.optim.SGD([weight], lr=1.0), Precision("fp16").scaler()
    scaler.scale((weight * 1e38).sum()).backward()
    before = scaler.get_scale()
    assert take_step(optimizer, scaler, max_norm=1.0).norm.isinf()
    assert weight.tolist() == [1.0, 1.0]
    assert scaler.get_scale() == before / 2


def test_the_gradient_is_clipped_after_it_is_scaled_back():
    weight = nn.Parameter(torch.zeros(2))
    optimizer, scaler = torch.optim.SGD([weight], lr=1.0), Precision("fp16").scaler()
    scaler.scale((weight * torch.tensor([3.0, 4.0])).sum()).backward()
    assert take_step(optimizer, scaler, max_norm=2.5).norm == pytest.approx(5.0)
    assert weight.tolist() == pytest.approx([-1.5, -2.0])


def test_a_step_without_gradients_is_none():
    weight = nn.Parameter(torch.ones(2))
    assert take_step(torch.optim.SGD([weight], lr=1.0), Precision("fp16").scaler()).norm == 0


def test_the_gate_of_a_large_output_does_not_overflow_in_fp16():
    """<gradient, output> is summed in the gate's own precision."""
    gate = torch.ones((), requires_grad=True)
    output = torch.full((1000,), 100.0, dtype=torch.half)
    pass_through(output, gate).sum(dtype=torch.float32).backward()
    assert gate.grad == 100_000  # more than fp16 has


def test_second_order_in_fp16_is_refused_and_in_bf16_it_learns(nas_bench_201, spec):
    with pytest.raises(ConfigError, match=r"and fp16 lacks the range, .*set runtime.precision=bf16"):
        searcher(nas_bench_201, spec, "fp16", sampler=Softmax(), cls=SecondOrder)
    search = searcher(nas_bench_201, spec, "bf16", sampler=Softmax(), cls=SecondOrder)
    before = search.arch.logits.detach().clone()
    search.arch_step(batch(spec, 1), batch(spec, 0), 1.0)
    assert search.arch.logits.isfinite().all()
    assert not torch.equal(search.arch.logits, before)


# -- retraining


def retrain_state(space, spec, precision="fp32"):
    torch.manual_seed(0)
    network = space.network(spec, Genotype(space.name, dict.fromkeys(space.options(spec), "nor_conv_3x3")))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    return RetrainState(network, optimizer, scaler=Precision(precision).scaler())


def weights_of(state):
    return torch.cat([weight.detach().flatten() for weight in state.network.parameters()])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", MIXED)
def test_retraining_in_16_bits_takes_the_step_of_32(nas_bench_201, spec, name, accumulation):
    whole, mixed = retrain_state(nas_bench_201, spec), retrain_state(nas_bench_201, spec, name)
    start = weights_of(whole)
    for state, precision in ((whole, "fp32"), (mixed, name)):
        step = TrainingStep(precision=Precision(precision), accumulation=accumulation, grad_clip=5.0)
        while step(state, batch(spec, size=32), Classification()).grad_norm.isinf():
            assert precision == "fp16"
    expected, found = weights_of(whole) - start, weights_of(mixed) - start
    assert torch.cosine_similarity(expected, found, dim=0) > 0.9
    assert not torch.equal(expected, found)
    assert mixed.network.state_dict().keys() == whole.network.state_dict().keys()


@pytest.mark.long
def test_a_compiled_network_trains_the_same_weights(nas_bench_201, spec):
    plain, compiled = retrain_state(nas_bench_201, spec), retrain_state(nas_bench_201, spec)
    forward = Runtime(device="cpu", compile="aot_eager").compiled(compiled.network)
    assert forward is not compiled.network
    for number in range(3):
        results = [
            TrainingStep()(plain, batch(spec, number), Classification()),
            TrainingStep()(compiled, batch(spec, number), Classification(), forward=forward),
        ]
        assert results[0].loss == pytest.approx(float(results[1].loss), rel=1e-5)
    assert torch.allclose(weights_of(plain), weights_of(compiled), rtol=1e-4, atol=1e-6)
    copied = copy.deepcopy(compiled.network)  # as a plain network can be
    assert compiled.network.state_dict().keys() == copied.state_dict().keys() == plain.network.state_dict().keys()


def test_without_a_compiler_the_network_is_run_as_it_is():
    network = nn.Linear(1, 1)
    assert Runtime(device="cpu").compiled(network) is network


def test_an_unknown_compiler_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"runtime.compile must be null or .*inductor.*, got 'gcc'"):
        Runtime(device="cpu", compile="gcc")


@pytest.mark.long
def test_a_rate_of_drop_path_does_not_compile_the_network_anew(darts, spec):
    network = darts.network(spec, PUBLISHED["DARTS_V2"])
    compiled_graphs = []

    def count(graph, inputs):
        compiled_graphs.append(graph)
        return graph.forward

    forward = torch.compile(network, backend=count)
    counts = []
    for rate in (0.05, 0.1, 0.15, 0.2):
        set_drop_path(network, rate)
        forward(batch(spec)[0])
        counts.append(len(compiled_graphs))
    assert counts == [counts[0]] * 4
