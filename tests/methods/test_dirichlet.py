"""The Dirichlet sampler: moments and gradients against closed forms and torch.distributions, in float64."""

import pytest
import torch
from torch.distributions import Dirichlet as Reference

from nas.methods.dirichlet import Dirichlet, DirichletSample

UPSTREAM = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)


def drawn(logits, rows, seed=5):
    logits = torch.tensor(logits, dtype=torch.float64).repeat(rows, 1).requires_grad_()
    weights = Dirichlet()(logits, 1.0, torch.Generator().manual_seed(seed)).weights
    return logits, weights


def concentration(logits):
    return torch.nn.functional.elu(logits) + 1


@pytest.mark.parametrize("logits", [[0.0] * 5, [0.3, -1.0, 2.0, 0.0, 1.1], [-6.0, -3.0, 0.0, 1.0, -9.0], [-9.0] * 5])
def test_mean_variance_and_gradient_are_those_of_the_distribution(logits):
    rows = 200_000
    logits, weights = drawn(logits, rows)
    exact = Reference(concentration(logits.detach()[0]))
    weights_error = (exact.variance / rows).sqrt()
    assert ((weights.mean(0) - exact.mean).abs() < 5 * weights_error).all()
    spread = ((weights.detach() - exact.mean) ** 2).std(0) / rows**0.5
    assert ((weights.var(0) - exact.variance).abs() < 5 * spread).all()
    (got,) = torch.autograd.grad((weights * UPSTREAM).sum(), logits)
    beta = concentration(one := logits.detach()[0].requires_grad_())
    (expected,) = torch.autograd.grad((beta / beta.sum() * UPSTREAM).sum(), one)
    assert ((got.mean(0) - expected).abs() < 5 * got.std(0) / rows**0.5 + 1e-3 * expected.abs()).all()


def test_a_very_negative_logit_has_a_gradient():
    """At logit -8 the weight is almost always 0, and its derivative, the rare rows included, is that of the mean."""
    rows = 400_000
    logits, weights = drawn([-8.0, 0.0, 0.0], rows)
    (got,) = torch.autograd.grad(weights[:, 0].sum(), logits)
    expected = 2 * 2.718281828459045**-8 / (2 + 2.718281828459045**-8) ** 2  # of a / (a + 2) in log a
    assert got[:, 0].mean().item() == pytest.approx(expected, rel=0.3)


def test_the_backward_pass_is_that_of_torch_given_the_weights():
    beta = torch.rand(50, 5, dtype=torch.float64) * 3 + 0.05
    upstream = torch.randn(50, 5, dtype=torch.float64)
    ours = beta.clone().requires_grad_()
    weights = DirichletSample.apply(ours, torch.ones(50, 5, dtype=torch.bool), torch.Generator().manual_seed(0))
    (got,) = torch.autograd.grad((weights * upstream).sum(), ours)
    w, total = weights.detach(), beta.sum(-1, keepdim=True).expand_as(beta).contiguous()
    expected = torch._dirichlet_grad(w, beta, total) * (upstream - (w * upstream).sum(-1, keepdim=True))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_the_gradient_varies_as_little_as_that_of_torch():
    rows = 100_000
    beta = torch.ones(rows, 5, dtype=torch.float64, requires_grad=True)
    everywhere = torch.ones(rows, 5, dtype=torch.bool)
    ours = DirichletSample.apply(beta, everywhere, torch.Generator().manual_seed(0))
    theirs = Reference(beta).rsample()
    gamma = torch._standard_gamma(beta)
    spread = [
        torch.autograd.grad((weights * UPSTREAM).sum(), beta)[0].var(0).sum().item()
        for weights in (ours, theirs, gamma / gamma.sum(-1, keepdim=True))
    ]
    assert spread[0] == pytest.approx(spread[1], rel=0.03)
    assert spread[2] > 1.05 * spread[0]  # what normalising gamma variates costs


def test_padding_has_no_weight_and_no_gradient_and_extremes_stay_numbers():
    logits = torch.tensor([[0.5, -60.0, 0.0], [-100.0, -100.0, 0.0], [80.0, 0.0, 0.0]], requires_grad=True)
    padding = torch.tensor([[False, False, True]]).expand(3, -1)
    weights = Dirichlet()(logits.masked_fill(padding, -torch.inf), 1.0, torch.Generator().manual_seed(0)).weights
    assert weights.dtype == torch.float32
    assert (weights[:, 2] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    (weights * torch.randn(3, 3)).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 2] == 0).all()
