"""Steps of fused optimisers past their own `step`: the same bits, and nothing that watches a step is passed over."""

import copy

import pytest
import torch
from torch import nn

from nas.runtime import precision
from nas.runtime.fused_step import clip, fused_step, zero_gradients
from nas.runtime.precision import Precision, take_step

SGD, ADAM = torch.optim.SGD, torch.optim.Adam


def weights():
    generator = torch.Generator().manual_seed(0)
    return nn.ParameterList(torch.randn(3, 4, generator=generator) for _ in range(3))


def steps(optimizer, parameters, count=5, max_norm=2.0):
    """Steps in which other parameters have gradients each time, as in a search."""
    generator = torch.Generator().manual_seed(1)
    norms = []
    for step in range(count):
        zero_gradients(optimizer)
        for number, parameter in enumerate(parameters):
            gradient = torch.randn(3, 4, generator=generator)
            if (step + number) % 3:
                parameter.grad = gradient
        norms.append(take_step(optimizer, Precision().scaler(), max_norm=max_norm).norm)
    return torch.stack(norms)


@pytest.fixture
def taken(monkeypatch):
    """Whether each step was taken past the optimiser's own."""
    found = []

    def spied(*arguments):
        found.append(fused_step(*arguments))
        return found[-1]

    monkeypatch.setattr(precision, "fused_step", spied)
    return found


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (SGD, {"momentum": 0.0, "maximize": True}),
        (ADAM, {"betas": (0.5, 0.999), "weight_decay": 1e-3}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
def test_a_step_is_the_optimisers_own_to_the_bit(make, settings, taken, monkeypatch):
    one = weights()
    other = copy.deepcopy(one)
    ours, own = (make(of.parameters(), lr=0.1, fused=True, **settings) for of in (one, other))
    norms = steps(ours, one)
    assert taken.count(True) == (4 if make is SGD and not settings["momentum"] else 3)  # the first ones make the state
    monkeypatch.setattr(precision, "fused_step", lambda *arguments: False)
    monkeypatch.setattr(
        precision,
        "clip",
        lambda optimizer, learning, gradients, limit, norm: nn.utils.clip_grads_with_norm_(learning, limit, norm),
    )
    assert torch.equal(norms, steps(own, other))
    for mine, its in zip(one, other, strict=True):
        assert torch.equal(mine, its)
        state, expected = ours.state[mine], own.state[its]
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)


class Own(SGD):
    """An optimiser of a user."""

    def zero_grad(self, set_to_none=True):
        self.zeroed = True
        super().zero_grad(set_to_none)


def scheduled(optimizer):
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)  # notices steps by a `step` of its own


def hooked(optimizer):
    optimizer.seen = []
    optimizer.register_step_post_hook(lambda *arguments: optimizer.seen.append(1))


@pytest.mark.parametrize(
    ("make", "watch"),
    [
        (SGD, scheduled),
        (SGD, hooked),
        (Own, lambda optimizer: None),
        (SGD, lambda optimizer: optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})),
        (SGD, lambda optimizer: optimizer.param_groups[0].update(lr=torch.tensor(0.1))),
        (SGD, lambda optimizer: optimizer.param_groups[0].update(fused=False)),
        (ADAM, lambda optimizer: optimizer.param_groups[0].update(amsgrad=True)),
    ],
)
def test_others_take_their_own_step(make, watch, taken):
    parameters = weights()
    optimizer = make(parameters.parameters(), lr=0.1, fused=True)
    watch(optimizer)
    before = parameters[1].detach().clone()
    steps(optimizer, parameters)
    assert not any(taken)
    assert not torch.equal(before, parameters[1])
    assert getattr(optimizer, "seen", [1] * 5) == [1] * 5
    assert getattr(optimizer, "zeroed", make is not Own) is not False


def test_a_profiler_sees_the_steps(taken):
    parameters = weights()
    optimizer = SGD(parameters.parameters(), lr=0.1, fused=True)
    with torch.profiler.profile() as profile:
        steps(optimizer, parameters)
    assert not any(taken)
    assert any("Optimizer.step#SGD.step" in event.key for event in profile.key_averages())


def test_gradients_of_several_types_are_clipped_by_torch():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 3.0)
    gradients = [parameter.grad for parameter in parameters]
    clip(SGD(parameters, lr=1.0), parameters, gradients, 3.0, torch.tensor(6.0))
    assert [gradient.tolist() for gradient in gradients] == [pytest.approx([1.5, 1.5])] * 2
