"""The exponentiated gradient step against its formula, in float64."""

import copy

import pytest
import torch
from torch import nn

from nas.errors import ConfigError
from nas.methods.dirichlet import Dirichlet
from nas.methods.exponentiated_gradient import ExponentiatedGradient
from nas.methods.sampler import GDAS, GumbelSoftmax, Softmax, StraightThrough
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice


def published(theta, slope, *, lr, floor):
    theta = (theta * torch.exp(-lr * slope)).clamp_min(floor)
    return theta / theta.sum(-1, keepdim=True)


@pytest.mark.parametrize("lr", [0.1, 1.0])
def test_several_steps_are_those_on_the_probabilities(lr):
    """A loss of the probabilities that is no linear one, so that every step has another gradient."""
    target = torch.rand(6, 5, dtype=torch.float64)

    def loss(theta):
        return ((theta - target) ** 2).sum() + theta.prod(-1).sum()

    logits = nn.Parameter(torch.zeros(6, 5, dtype=torch.float64))
    optimizer = ExponentiatedGradient([logits], lr=lr)
    theta = torch.full((6, 5), 0.2, dtype=torch.float64)
    for _ in range(20):
        optimizer.zero_grad()
        loss(logits.softmax(-1)).backward()
        optimizer.step()
        leaf = theta.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf), leaf)
        theta = published(theta, slope, lr=lr, floor=1e-5)
    torch.testing.assert_close(logits.detach().softmax(-1), theta, rtol=1e-10, atol=1e-12)


def test_a_probability_stops_near_the_floor_and_comes_back():
    logits = nn.Parameter(torch.zeros(1, 3, dtype=torch.float64))
    optimizer = ExponentiatedGradient([logits], lr=1.0)
    for sign in (1.0, -1.0):
        for _ in range(60):
            optimizer.zero_grad()
            (logits.softmax(-1) * torch.tensor([sign, 0.0, 0.0])).sum().backward()
            optimizer.step()
        probs = logits.detach().softmax(-1)[0]
        if sign > 0:
            assert probs[0].item() == pytest.approx(1e-5, rel=0.01)
    assert probs[0] > 0.99


class Mixed(nn.Module):
    """Choices of two and three candidates, so that one row is padded; both are weighed in one group."""

    def __init__(self):
        super().__init__()
        self.one = Choice({name: nn.Identity() for name in "ab"}, key="one", group="node", weighed=True)
        self.two = Choice({name: nn.Identity() for name in "abc"}, key="two", group="node", weighed=True)


def test_padding_does_not_compete_and_shares_compete_within_their_group():
    arch = ArchParams.from_model(Mixed(), init_std=0.5).double()
    optimizer = ExponentiatedGradient(arch.parameters(), lr=0.3)
    values = torch.randn(2, 3, dtype=torch.float64)
    theta, shares = arch.probs().detach(), arch.shares().detach()
    padded = arch.logits.detach()[0, 2].clone()
    for _ in range(5):
        optimizer.zero_grad()
        ((arch.probs() * values).sum(-1) * arch.shares()).sum().backward()
        optimizer.step()
        slope = values * shares[:, None]
        share_slope = (theta * values).sum(-1)
        new_shares = shares * torch.exp(-0.3 * share_slope)
        theta = theta * torch.exp(-0.3 * slope) * arch.mask
        theta, shares = theta / theta.sum(-1, keepdim=True), new_shares / new_shares.sum()
    torch.testing.assert_close(arch.probs().detach(), theta, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(arch.shares().detach(), shares, rtol=1e-10, atol=1e-12)
    assert arch.logits.detach()[0, 2] == padded


def test_a_copy_of_logits_and_optimizer_knows_the_padding():
    arch = ArchParams.from_model(Mixed(), init_std=0.5).double()
    pairs = [(arch, ExponentiatedGradient(arch.parameters()))]
    pairs.append(copy.deepcopy(pairs[0]))
    for params, optimizer in pairs:
        params.probs()[0, 0].backward()
        optimizer.step()
    assert torch.equal(pairs[0][0].logits, pairs[1][0].logits)
    assert pairs[0][0].logits is not pairs[1][0].logits


@pytest.mark.parametrize("sampler", [Softmax(), GumbelSoftmax(), StraightThrough(), GDAS(), Dirichlet()])
def test_it_works_with_every_sampler(sampler):
    """What costs less becomes more probable, whatever estimates the gradient."""
    arch = ArchParams.from_model(Choice({name: nn.Identity() for name in "abc"}), init_std=0.0)
    optimizer = ExponentiatedGradient(arch.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        (sampler(arch.masked(), 1.0, generator).weights * torch.tensor([1.0, -1.0, 0.5])).sum().backward()
        optimizer.step()
    assert arch.probs()[0].argmax() == 1
    assert arch.probs()[0, 1] > 0.6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ExponentiatedGradient([nn.Parameter(torch.zeros(2, 3, 1, 1))]),
            r"got a parameter of shape \(2, 3, 1, 1\)",
        ),
        (lambda: ExponentiatedGradient([nn.Parameter(torch.zeros(2, 3))], lr=0.0), "lr must be > 0"),
        (lambda: ExponentiatedGradient([nn.Parameter(torch.zeros(2, 3))], floor=0.0), "floor must be in"),
    ],
)
def test_what_it_refuses(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
