"""Candidates that are recorded when they are first drawn and replayed from then on. On a CPU the recorder is one that
asks of a module what CUDA's asks of it, and replays it by running it."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nas.arch import ArchParams
from nas.choice import Choice
from nas.cuda_graphs import Replayed, replay_candidates
from nas.hard_gate import HardGate
from nas.ops import Noise, ReLUConvBN, Zero
from nas.sampler import GDAS, Softmax
from nas.searcher import FirstOrder
from nas.task import Classification

WARMUP = 3  # passes of a module before it is recorded


class Recorder:
    """torch.cuda.make_graphed_callables, but for the graphs."""

    def __init__(self):
        self.recorded = []

    def __call__(self, module, samples, *, allow_unused_input, capture_error_mode):
        surface = (*samples, *module.parameters())
        assert all(one.is_leaf for one in samples)
        assert not any(buffer.requires_grad for buffer in module.buffers())
        assert not torch.is_autocast_cache_enabled()
        learning = [one for one in surface if one.requires_grad]
        for _ in range(WARMUP):
            output = module(*samples)
            if output.requires_grad:
                torch.autograd.grad(output, learning, torch.ones_like(output), allow_unused=allow_unused_input)
        self.recorded.append(module)
        kinds = [(one.shape, one.stride(), one.dtype, one.requires_grad) for one in samples]

        def replay(*arguments):
            assert [(one.shape, one.stride(), one.dtype, one.requires_grad) for one in arguments] == kinds
            assert [one for one in surface if one.requires_grad] == learning
            return module(*arguments)

        return replay


def searcher(space, spec, sampler, record=None):
    torch.manual_seed(2)
    supernet = space.supernet(spec).train()
    if record is not None:
        replay_candidates(supernet, record)
    arch = ArchParams.from_model(supernet, generator=torch.Generator().manual_seed(1))
    return FirstOrder(
        supernet=supernet,
        arch=arch,
        task=Classification(),
        sampler=sampler,
        weight_optim=torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9),
        arch_optim=torch.optim.Adam(arch.parameters(), lr=0.1),
        generator=torch.Generator().manual_seed(0),
    )


def batch(spec, seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, *spec.input_shape, generator=generator)
    return images.to(device), torch.randint(spec.num_classes, (4,), generator=generator).to(device)


def run(made, spec, steps=4, device="cpu"):
    losses = []
    for step in range(steps):
        losses.append(made.weight_step(batch(spec, 2 * step, device), 1.0).loss)
        losses.append(made.arch_step(batch(spec, 2 * step + 1, device), batch(spec, 2 * step, device), 1.0).loss)
    return torch.stack(losses), made.arch.logits.detach(), made.supernet.state_dict()


@pytest.mark.parametrize("sampler", [GDAS(), GDAS(estimator="autodl"), Softmax()])
def test_a_search_is_the_same_bit_for_bit(space, spec, sampler):
    recorder = Recorder()
    losses, logits, state = run(searcher(space, spec, sampler), spec)
    again, replayed_logits, replayed_state = run(searcher(space, spec, sampler, recorder), spec)
    assert len(recorder.recorded) > 4
    assert torch.equal(again, losses)
    assert torch.equal(replayed_logits, logits)
    assert replayed_state.keys() == state.keys()
    assert all(torch.equal(replayed_state[name], value) for name, value in state.items())


def test_a_candidate_is_recorded_once_for_each_level_and_kind_of_input():
    recorder, candidate = Recorder(), ReLUConvBN(4, 4, 1, False, kernel_size=3).train()
    model = Choice({"conv": candidate, "identity": nn.Identity()})
    replay_candidates(model, recorder)
    x = torch.randn(2, 4, 6, 6)
    for _ in range(2):
        candidate(x)
    assert len(recorder.recorded) == 1
    candidate(x.clone().requires_grad_())
    candidate(x[:1])
    candidate(x.contiguous(memory_format=torch.channels_last))
    assert len(recorder.recorded) == 4
    gate = torch.ones((), requires_grad=True)
    candidate.requires_grad_(False)
    HardGate(gate).run(candidate, x).square().sum().backward()
    assert len(recorder.recorded) == 5
    assert gate.grad != 0
    assert candidate[-1].weight is None


def test_recording_moves_no_statistics():
    recorder, candidate = Recorder(), ReLUConvBN(4, 4, 1, False, kernel_size=3).train()
    same, x = copy.deepcopy(candidate), torch.randn(2, 4, 6, 6)
    replay_candidates(Choice({"conv": candidate, "identity": nn.Identity()}), recorder)
    candidate(x), same(x)
    for one, other in zip(candidate.buffers(), same.buffers(), strict=True):
        assert torch.equal(one, other)


def test_scores_and_weights_of_others_are_computed_as_they_are():
    recorder, candidate = Recorder(), ReLUConvBN(4, 4, 1, False, kernel_size=3).train()
    replay_candidates(Choice({"conv": candidate, "identity": nn.Identity()}), recorder)
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        candidate(x)
    candidate.eval()(x)
    candidate.train()
    doubled = {name: 2 * weight for name, weight in candidate.named_parameters()}
    functional_call(candidate, doubled, (x,))
    assert not recorder.recorded


def test_what_is_not_recorded():
    inner = Choice({"conv": nn.Conv2d(4, 4, 1), "identity": nn.Identity()}, key="inner")
    outer = Choice(
        {"inner": nn.Sequential(inner), "none": Zero(4, 4, 1, False), "noise": Noise(4, 4, 1, False)}, key="k"
    )
    replay_candidates(outer, Recorder())
    assert {type(module) for module in outer.modules() if module._compiled_call_impl is not None} == {nn.Conv2d}
    assert all(module._compiled_call_impl is None for module in copy.deepcopy(outer).modules())
    assert isinstance(inner.candidates[0]._compiled_call_impl, Replayed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sampler", [GDAS(), GDAS(estimator="autodl")])
def test_on_a_gpu_a_search_is_the_same_to_rounding(space, spec, sampler):
    results = []
    for record in (None, torch.cuda.make_graphed_callables):
        made = searcher(space, spec, sampler, record)
        made.supernet.cuda(), made.arch.cuda()
        results.append(run(made, spec, device="cuda"))
    (losses, logits, _), (again, replayed, _) = results
    assert torch.allclose(losses, again, rtol=1e-4)
    assert torch.allclose(logits, replayed, rtol=1e-3, atol=1e-4)
