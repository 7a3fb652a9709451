"""Supernets by replay compute what they compute without. On a CPU the recorder is one that does the work again."""

import copy
import dataclasses
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from nas.arch import ArchParams
from nas.choice import Choice, Gate, gates
from nas.cuda_graphs import CudaGraphs
from nas.errors import ConfigError
from nas.ops import Noise, ReLUConvBN
from nas.precision import Precision
from nas.replay import Replayed, replay
from nas.sampler import GDAS, Softmax, Uniform
from nas.searcher import FirstOrder
from nas.task import Classification

CPU = torch.device("cpu")


class Again:
    """Records work by keeping it, and counts what was recorded."""

    device = CPU

    def __init__(self):
        self.recorded = []

    def pool(self):
        return object()

    def rehearsing(self):
        return nullcontext()

    def record(self, work, pool):
        self.recorded.append(pool)
        return work


class Custom(nn.Module):
    """Choices without cells, one inside another, a fixed module with a second use in a pass, one that is random."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        inner = Choice({"tanh": nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh()), "same": nn.Identity()})
        self.outer = Choice({"inner": nn.Sequential(nn.Conv2d(4, 4, 1), inner), "conv": nn.Conv2d(4, 4, 3, padding=1)})
        self.twice = nn.Conv2d(4, 4, 1)
        self.after = Choice({"conv": nn.Conv2d(4, 4, 1), "none": nn.Identity()})
        self.drop = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5))
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.twice(self.twice(self.outer(self.stem(x))).sin())
        return self.head(self.drop(self.after(x)).mean(dim=(2, 3)))


def searcher(supernet, sampler, recorder=None, device=CPU, precision=None):
    supernet = copy.deepcopy(supernet).train().to(device)
    if recorder is not None:
        replay(supernet, recorder)
    arch = ArchParams.from_model(supernet, generator=torch.Generator().manual_seed(1)).to(device)
    return FirstOrder(
        supernet=supernet,
        arch=arch,
        task=Classification(),
        sampler=sampler,
        weight_optim=torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9),
        arch_optim=torch.optim.Adam(arch.parameters(), lr=0.1),
        generator=torch.Generator().manual_seed(0),
        precision=precision,
    )


def batch(seed, device=CPU, dtype=torch.float64, size=8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64).to(device, dtype)
    return images, torch.randint(3, (4,), generator=generator).to(device)


def steps(made, count=4, **kind):
    """All that changes in so many iterations: losses, logits, weights, statistics, momentum."""
    torch.manual_seed(3)  # what is random draws from torch's own generator
    losses = []
    for step in range(count):
        weights, arch = batch(2 * step, **kind), batch(2 * step + 1, **kind)
        losses += [made.weight_step(weights, 1.0).loss, made.arch_step(arch, weights, 1.0).loss]
    names = {weight: name for name, weight in made.supernet.named_parameters()}
    momentum = {f"momentum of {names[weight]}": s["momentum_buffer"] for weight, s in made.weight_optim.state.items()}
    return {
        "losses": torch.stack(losses),
        "logits": made.arch.logits.detach(),
        **made.supernet.state_dict(),
        **momentum,
    }


def assert_same(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value, two[name], **tolerance), name


@pytest.fixture(params=["nas_bench_201", "darts", "custom"])
def supernet(request, spec):
    torch.manual_seed(2)
    made = Custom() if request.param == "custom" else request.getfixturevalue(request.param).supernet(spec)
    return made.double()


@pytest.mark.parametrize("sampler", [GDAS(), GDAS(samples=2), Uniform()])
def test_a_search_is_the_same(supernet, sampler):
    """But for the order in which float64 sums are taken. What was not drawn rests: it has no momentum."""
    recorder = Again()
    expected = steps(searcher(supernet, sampler))
    assert_same(expected, steps(searcher(supernet, sampler, recorder)), rtol=1e-9, atol=1e-12)
    assert len(recorder.recorded) > 10


@pytest.mark.parametrize("sampler", [GDAS(estimator="autodl"), Softmax()])
def test_where_several_candidates_count_nothing_is_replayed(spec, nas_bench_201, sampler):
    supernet = nas_bench_201.supernet(spec).double()
    recorder = Again()
    expected = steps(searcher(supernet, sampler))
    assert_same(expected, steps(searcher(supernet, sampler, recorder)), rtol=1e-9, atol=1e-12)
    # All but weight steps of GDAS.
    assert bool(recorder.recorded) == isinstance(sampler, GDAS)


def test_each_candidate_is_recorded_once_for_each_level(spec, nas_bench_201):
    supernet = nas_bench_201.supernet(spec).double()
    recorder = Again()
    made = searcher(supernet, GDAS(), recorder)
    steps(made, 60)
    count = len(recorder.recorded)
    steps(made, 20)
    assert len(recorder.recorded) == count
    # A place's candidates are never under way together, and share their memory.
    tape = made.supernet._compiled_call_impl._tape
    assert len(set(recorder.recorded)) == len(list(tape.places()))


def test_recording_moves_no_statistics_and_other_results_are_refused():
    conv = ReLUConvBN(4, 4, 1, False, kernel_size=3)
    made = Choice({"conv": conv, "same": nn.Identity()})
    before = copy.deepcopy(conv.state_dict())
    recorder = Again()
    recorder.record = lambda work, pool: lambda: None  # so that nothing but the rehearsal runs
    replay(made, recorder)
    with (
        gates({"": [made]}, {"": Gate(None, 0)}),
        pytest.raises(ConfigError, match="Choice computes something else when it is replayed"),
    ):
        made.train()(torch.randn(2, 4, 6, 6))
    for name, value in conv.state_dict().items():
        assert torch.equal(value, before[name])


class Branching(nn.Module):
    """Takes another way when it is traced: a proxy is no tensor."""

    def __init__(self):
        super().__init__()
        self.choice = Choice({"conv": nn.Conv2d(4, 4, 1), "same": nn.Identity()})

    def forward(self, x):
        return self.choice(x) if isinstance(x, torch.Tensor) else self.choice(x) + 1


def test_another_way_through_the_code_is_noticed():
    model = Branching().train()
    replay(model, Again())
    with gates({"": [model.choice]}, {"": Gate(None, 0)}), pytest.raises(ConfigError, match="Branching computes"):
        model(torch.randn(2, 4, 6, 6))


def test_what_is_not_a_training_step_runs_as_it_is(spec, nas_bench_201):
    made = searcher(nas_bench_201.supernet(spec).double(), GDAS(), recorder := Again())
    images, _ = batch(0)
    by_key = {key: Gate(None, 1) for key in made.arch.keys}
    with gates(made.choices, by_key), torch.no_grad():
        made.supernet(images)
        made.supernet.eval()(images)
    with gates(made.choices, by_key):
        made.supernet(images)
    assert not recorder.recorded
    assert all(module._compiled_call_impl is None for module in copy.deepcopy(made.supernet).modules())


def test_other_shapes_and_types_are_recorded_anew(spec, nas_bench_201):
    supernet = nas_bench_201.supernet(spec).double()
    one, two = searcher(supernet, GDAS()), searcher(supernet, GDAS(), Again())
    for size in (8, 12, 8):
        assert_same(steps(one, 2, size=size), steps(two, 2, size=size), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("unrecorded", ["forward", "backward"])
def test_what_cannot_be_recorded_runs_each_time(supernet, unrecorded, capsys):
    class Sometimes(Again):
        def record(self, work, pool):
            super().record(work, pool)
            if len(self.recorded) % 3 == 0 and work.__name__ == unrecorded:
                raise RuntimeError("operation not permitted when stream is capturing\nand so on")
            return work

    expected = steps(searcher(supernet, GDAS()))
    assert_same(expected, steps(searcher(supernet, GDAS(), Sometimes())), rtol=1e-9, atol=1e-12)
    told = capsys.readouterr().err
    assert "cannot be recorded (operation not permitted when stream is capturing); it runs as without" in told
    assert "and so on" not in told


def replayed(model):
    replay(model, Again())
    return {name for name, module in model.named_modules() if isinstance(module._compiled_call_impl, Replayed)}


def test_a_model_is_replayed_as_a_whole_or_in_its_largest_parts(spec, nas_bench_201, darts):
    assert replayed(nas_bench_201.supernet(spec)) == replayed(darts.supernet(spec)) == {""}
    partial = replayed(dataclasses.replace(darts, partial_channels=2).supernet(spec))
    assert {"stem", "cells.0.preprocess_last", "cells.0.graph.edges.0.0.choice", "head"} <= partial
    # Neither what is random nor a choice with a choice inside.
    assert replayed(Custom()) == {"stem", "twice", "after", "drop.0", "head"}
    noisy = Custom()
    noisy.after = Choice({"noise": Noise(4, 4, 1, False), "conv": nn.Conv2d(4, 4, 1)})
    assert replayed(noisy) == {"stem", "twice", "drop.0", "head"}


def test_a_gradient_cannot_be_differentiated():
    model = Choice({"conv": nn.Conv2d(1, 1, 1), "same": nn.Identity()})
    replay(model, Again())
    x = torch.randn(1, 1, 2, 2, requires_grad=True)
    with gates({"": [model]}, {"": Gate(None, 0)}):
        (slope,) = torch.autograd.grad(model.train()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_a_search_is_the_same(supernet):
    device = torch.device("cuda", 0)
    expected = steps(searcher(supernet, GDAS(), device=device), device=device)
    made = searcher(supernet, GDAS(), CudaGraphs(device), device)
    assert_same(expected, steps(made, device=device), rtol=1e-8, atol=1e-10)


def test_in_mixed_precision(spec, nas_bench_201):
    """The numbers differ by the roundings of sums, of which Adam makes steps of the same size in other directions."""
    supernet = nas_bench_201.supernet(spec)
    one, two = (
        steps(searcher(supernet, GDAS(), recorder, precision=Precision("bf16", "cpu")), 2, dtype=torch.float32)
        for recorder in (None, Again())
    )
    assert torch.allclose(one["losses"], two["losses"], rtol=0.05)
