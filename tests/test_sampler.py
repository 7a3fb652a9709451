import math

import pytest
import torch
from scipy import stats

from nas.sampler import GDAS, Gates, gumbel_noise


def gumbel(seed):
    return torch.Generator().manual_seed(seed)


# Every sampler that ships.
SAMPLERS = [pytest.param(GDAS(), id="GDAS")]


# -- Gumbel noise


def test_gumbel_noise_has_the_moments_and_the_distribution_of_its_definition():
    noise = gumbel_noise(torch.empty(1_000_000), gumbel(0)).double()
    assert noise.isfinite().all()
    # Standard errors: sd / 1000 of the mean; the fourth moment gives 0.0034 for the variance.
    assert noise.mean().item() == pytest.approx(0.5772156649, abs=4 * 1.2825 / 1000)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=4 * 0.0034)
    assert stats.kstest(noise[:100_000].numpy(), "gumbel_r").pvalue > 0.001


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gumbel_noise_takes_the_type_of_the_logits_and_stays_finite(dtype):
    noise = gumbel_noise(torch.empty(200_000, dtype=dtype), gumbel(0))
    assert noise.dtype == dtype
    assert noise.isfinite().all()


# -- GDAS: the draw

LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.1])


@pytest.mark.parametrize("temperature", [10.0, 1.0, 0.1])
def test_draws_follow_the_softmax_of_the_logits_at_every_temperature(temperature):
    draws = 100_000
    drawn = GDAS()(LOGITS.expand(draws, -1), temperature, gumbel(7)).drawn
    observed = torch.bincount(drawn, minlength=len(LOGITS)).numpy()
    expected = LOGITS.double().softmax(dim=0).numpy() * draws
    assert stats.chisquare(observed, expected).pvalue > 0.001


def test_rows_of_one_draw_are_independent():
    # Two equal choices: agreement as often as the probabilities say, sum p^2.
    rows, p = 50_000, LOGITS.double().softmax(dim=0)
    drawn = GDAS()(LOGITS.expand(2 * rows, -1), 1.0, gumbel(8)).drawn.view(2, rows)
    agreement = (p**2).sum().item()
    deviation = math.sqrt(agreement * (1 - agreement) / rows)
    assert (drawn[0] == drawn[1]).double().mean().item() == pytest.approx(agreement, abs=4 * deviation)


def test_padding_is_never_drawn_and_gets_no_gradient():
    logits = torch.tensor([[0.5, -0.5, 0.0, 0.0]], requires_grad=True)
    masked = logits.masked_fill(torch.tensor([[False, False, True, True]]), -torch.inf).expand(10_000, -1)
    gates = GDAS()(masked, 1.0, gumbel(9))
    assert gates.drawn.max() == 1
    assert gates.weights.isfinite().all()
    (gates.weights * torch.randn(10_000, 4)).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, 2:] == 0).all()
    assert (logits.grad[0, :2] != 0).all()


def test_weights_are_exactly_one_hot_at_the_draw():
    gates = GDAS()(torch.randn(5_000, 8) * 3, 0.7, gumbel(10))
    assert torch.equal(gates.weights, torch.nn.functional.one_hot(gates.drawn, 8).float())
    assert gates.drawn.dtype == torch.int64


# -- GDAS: the gradient


@pytest.mark.parametrize("temperature", [10.0, 1.0, 0.3])
def test_the_gradient_is_that_of_the_soft_gumbel_softmax(temperature):
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 5, dtype=torch.float64)

    gates = GDAS()(logits, temperature, gumbel(11))
    (got,) = torch.autograd.grad((gates.weights * upstream).sum(), logits)

    noise = gumbel_noise(logits, gumbel(11))
    soft = ((logits.log_softmax(dim=-1) + noise) / temperature).softmax(dim=-1)
    (expected,) = torch.autograd.grad((soft * upstream).sum(), logits)
    assert torch.equal(soft.argmax(dim=-1), gates.drawn)
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-14)

    # In closed form, without autograd: y_j (v_j - <v, y>) / tau.
    y = soft.detach()
    closed = y * (upstream - (upstream * y).sum(dim=-1, keepdim=True)) / temperature
    assert torch.allclose(got, closed, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("temperature", [100.0, 0.01])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_temperatures_give_no_nan(temperature, scale, dtype):
    logits = (torch.randn(1000, 8) * scale).to(dtype).requires_grad_()
    masked = logits.masked_fill(torch.arange(8) >= 5, -torch.inf)
    gates = GDAS()(masked, temperature, gumbel(12))
    assert gates.weights.isfinite().all()
    assert torch.equal(gates.weights.argmax(dim=-1), gates.drawn)
    (gates.weights * torch.randn(1000, 8).to(dtype)).sum().backward()
    assert logits.grad.isfinite().all()


# -- every sampler


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_generator_determines_the_draw(sampler):
    logits = torch.randn(50, 5)
    generator = gumbel(13)
    first, second = sampler(logits, 1.0, generator), sampler(logits, 1.0, generator)
    torch.rand(10)  # the global generator plays no part
    again = sampler(logits, 1.0, gumbel(13))
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.weights, second.weights)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_global_generator_is_left_alone(sampler):
    before = torch.get_rng_state()
    sampler(torch.randn(5, 3, generator=gumbel(1)), 1.0, gumbel(14))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_row_sums_to_one_and_the_logits_are_untouched(sampler):
    logits = torch.randn(50, 5)
    copy = logits.clone()
    assert torch.allclose(sampler(logits, 1.0, gumbel(15)).weights.sum(dim=-1), torch.ones(50))
    assert torch.equal(logits, copy)


# -- Gates.by_key


def test_by_key_pairs_rows_with_keys():
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    gates = Gates(weights, torch.tensor([1, 0])).by_key(["a", "b"], differentiable=True)
    assert [gates["a"].drawn, gates["b"].drawn] == [1, 0]
    assert [w.item() for w in gates["a"].weights] == [0.0, 1.0]
    (gates["a"].weights[1] * 3 + gates["b"].weights[0] * 5).backward()
    assert weights.grad.tolist() == [[0.0, 3.0], [5.0, 0.0]]


def test_by_key_without_a_gradient_carries_no_graph():
    weights = torch.rand(2, 3, requires_grad=True) * 1
    drawn = Gates(weights, torch.tensor([1, 0])).by_key(["a", "b"], differentiable=False)
    assert [gate.weights for gate in drawn.values()] == [None, None]
    soft = Gates(weights).by_key(["a", "b"], differentiable=False)
    assert all(gate.drawn is None for gate in soft.values())
    assert not any(w.requires_grad for gate in soft.values() for w in gate.weights)
    assert [[w.item() for w in gate.weights] for gate in soft.values()] == weights.tolist()


def test_by_key_refuses_another_number_of_keys():
    with pytest.raises(ValueError, match="zip"):
        Gates(torch.eye(2), torch.tensor([0, 1])).by_key(["a"], differentiable=True)
