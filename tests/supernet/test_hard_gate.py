"""A drawn candidate under its gate. test_choice.py tests the products themselves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.spaces.ops import FactorizedReduce, ReLUConvBN, SepConv
from nas.supernet.hard_gate import GateValues, HardGate, inner_product, last_norm, pass_through


def ops():
    shared = nn.BatchNorm2d(4, affine=False)
    replaced = {
        "norm": nn.BatchNorm2d(4, affine=False),
        "pool": nn.MaxPool2d(3, 1, 1),
        "sequence": nn.Sequential(shared),
    }
    for module in replaced.values():
        module.forward = lambda x: F.batch_norm(x, None, None, training=True) + 1
    return {
        **{f"{name} with another forward": module for name, module in replaced.items()},
        "norm alone": nn.BatchNorm2d(4, affine=False),
        "relu conv norm": ReLUConvBN(4, 4, 1, False, kernel_size=3),
        "separable": SepConv(4, 4, 2, False, kernel_size=3),
        "pool": nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(4, affine=False)),
        "reduce": FactorizedReduce(4, 4, False),
        "identity": nn.Identity(),
        "average": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        "maximum": nn.MaxPool2d(3, 1, 1),
        "affine": ReLUConvBN(4, 4, 1, True, kernel_size=1),
        "no statistics": nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        "norm used twice": nn.Sequential(nn.Sequential(nn.ReLU(), shared), nn.Sequential(nn.ReLU(), shared)),
    }


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ops())
def test_value_and_gradients_are_those_of_the_product(name, layout):
    module = ops()[name].to(memory_format=layout)
    same = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 4, 6, 6, generator=generator).to(memory_format=layout)
    results = []
    for run in (
        lambda gate, x: HardGate(gate).run(module, x),
        lambda gate, x: same(x) * gate,
    ):
        gate, inputs = torch.ones((), requires_grad=True), x.clone().requires_grad_()
        output = run(gate, inputs)
        weights = torch.linspace(-1, 2, output.numel()).view_as(output)
        (output * weights).sum().backward()
        results.append((output.detach(), gate.grad, inputs.grad))
    (ours, our_gate, our_inputs), (theirs, their_gate, their_inputs) = results
    assert torch.equal(ours, theirs)
    assert torch.allclose(our_gate, their_gate, rtol=1e-4)
    assert torch.allclose(our_inputs, their_inputs, rtol=1e-4, atol=1e-6)
    assert list(module.state_dict()) == list(same.state_dict())
    for one, other in zip(module.buffers(), same.buffers(), strict=True):
        assert torch.equal(one, other)


def test_candidates_that_share_a_gate_add_up_in_its_gradient():
    x, found = torch.randn(5, 4, 6, 6), []
    for shared in (True, False):
        gate = torch.ones((), requires_grad=True)
        modules = [module for name, module in ops().items() if name != "no statistics"]
        hard = [HardGate(gate)] * len(modules) if shared else [HardGate(gate) for _ in modules]
        torch.manual_seed(0)  # weights are made anew
        for module in modules:
            for weight in module.parameters():
                nn.init.normal_(weight)
        sum((one.run(module, x) * 0.3).square().sum() for one, module in zip(hard, modules, strict=True)).backward()
        found.append(gate.grad)
    assert torch.allclose(*found, rtol=1e-5)
    assert found[0] > 1


@pytest.mark.parametrize("name", ["relu conv norm", "identity", "maximum"])
@pytest.mark.parametrize("aside", ["no_grad", "inference_mode", "transform"])
def test_a_part_that_runs_without_gradients_leaves_the_others_theirs(aside, name):
    gates, x, module = torch.ones(2, requires_grad=True), torch.randn(5, 4, 6, 6), ops()[name]
    values = GateValues(gates)
    first, second = HardGate(values), HardGate(values, index=1)
    if aside == "transform":
        torch.func.grad(lambda x: first.run(module.eval(), x).sum())(x)
        module.train()
    else:
        with getattr(torch, aside)():
            first.run(module, x)
    (first.run(module, x) * x + 2 * second.run(module, x) * x).sum().backward()
    assert gates.grad[0] != 0
    assert torch.allclose(gates.grad[1], 2 * gates.grad[0], rtol=1e-4)


def test_which_norms_take_the_gate():
    found = {name for name, module in ops().items() if last_norm(module) is not None}
    assert found == {"norm alone", "relu conv norm", "separable", "pool"}
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(ReLUConvBN(4, 4, 1, False, kernel_size=1))
    assert last_norm(synchronised) is None


def test_a_norm_keeps_no_output_for_the_gate():
    """What a candidate that ends in a norm saves for its backward pass: no more than without a gate."""

    def saved(run):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            run()
        return sum(sizes)

    module, gate = ReLUConvBN(4, 4, 1, False, kernel_size=3), torch.ones((), requires_grad=True)
    x = torch.randn(5, 4, 6, 6)
    assert saved(lambda: HardGate(gate).run(module, x)) < saved(lambda: module(x)) + 10
    assert saved(lambda: pass_through(module(x), gate)) >= saved(lambda: module(x)) + x.numel()


def test_pooling_keeps_no_output_for_the_gate():
    pool, gate = nn.AvgPool2d(3, 1, 1), torch.ones((), requires_grad=True)
    x, kept = torch.randn(5, 4, 6, 6), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        HardGate(gate).run(pool, x.requires_grad_())
    assert set(kept) <= {x.data_ptr(), gate.data_ptr()}


@pytest.mark.parametrize("make", [lambda: nn.AvgPool2d(2), lambda: nn.Sequential(nn.BatchNorm2d(2, affine=False))])
@pytest.mark.parametrize("inner", [False, True])
def test_a_hook_that_changes_an_output_is_a_part_of_the_candidate(make, inner):
    candidate, x = make().double(), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    (candidate[-1] if inner and isinstance(candidate, nn.Sequential) else candidate).register_forward_hook(
        lambda module, inputs, output: output.tanh() + 1
    )
    gate = torch.ones((), dtype=torch.float64, requires_grad=True)
    slopes = [
        torch.autograd.grad(output.square().sum(), gate)[0]
        for output in (HardGate(gate).run(candidate, x), gate * candidate(x))
    ]
    assert torch.allclose(*slopes)


def test_a_candidate_that_fails_leaves_no_gate_behind():
    module, gate = ReLUConvBN(4, 4, 1, False, kernel_size=3), torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError):
        HardGate(gate).run(module, torch.randn(1, 3, 6, 6))
    assert module[-1].weight is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_inner_product(dtype):
    one, other = torch.randn(2, 3, 4, 5, 5).to(dtype)
    expected = (one.double() * other.double()).sum().float()
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    for layout in (torch.contiguous_format, torch.channels_last):
        got = inner_product(one.contiguous(memory_format=layout), other.contiguous(memory_format=torch.channels_last))
        assert torch.allclose(got, expected, rtol=tolerance, atol=tolerance)
    assert inner_product(torch.ones(()), torch.tensor(3.0)) == 3


def test_products_that_float16_cannot_hold():
    large = torch.full((2,), 300.0, dtype=torch.float16)
    assert inner_product(large, large) == 180_000


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_gate_of_a_complex_output(dtype):
    generator, found = torch.Generator().manual_seed(3), []
    spectrum, weights = torch.randn(2, 5, 6, dtype=dtype, generator=generator)
    for product in (pass_through, lambda output, gate: output * gate):
        gate = torch.ones((), dtype=weights.real.dtype, requires_grad=True)
        output = product(spectrum.clone().requires_grad_(), gate)
        torch.fft.irfft(output * weights, n=10).pow(3).sum().backward()
        found.append(gate.grad)
    assert torch.allclose(*found, rtol=1e-5)
    assert found[0].dtype == weights.real.dtype
