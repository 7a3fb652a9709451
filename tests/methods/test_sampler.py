import math

import pytest
import torch
from scipy import stats
from torch import nn

from nas.errors import ConfigError, DivergenceError
from nas.methods.dirichlet import Dirichlet
from nas.methods.sampler import (
    ESTIMATORS,
    GDAS,
    Gates,
    GumbelSoftmax,
    Softmax,
    StraightThrough,
    Uniform,
    draw,
    gumbel_noise,
)
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice, gates as choice_gates


def gumbel(seed):
    return torch.Generator().manual_seed(seed)


GDAS_ESTIMATORS = [pytest.param(GDAS(estimator=name), id=f"GDAS-{name}") for name in ESTIMATORS]
HARD = [*GDAS_ESTIMATORS, pytest.param(StraightThrough(), id="StraightThrough")]
SOFT = [pytest.param(sampler(), id=sampler.__name__) for sampler in (Softmax, GumbelSoftmax, Dirichlet)]
LEARNING = [*HARD, *SOFT]
SAMPLERS = [*LEARNING, pytest.param(Uniform(), id="Uniform")]  # every sampler that ships
STOCHASTIC = [param for param in SAMPLERS if param.id != "Softmax"]


# -- Gumbel noise


def test_gumbel_noise_has_the_moments_and_the_distribution_of_its_definition():
    noise = gumbel_noise(torch.empty(1_000_000), gumbel(0)).double()
    assert noise.isfinite().all()
    # Standard errors: sd / 1000 of the mean; the fourth moment gives 0.0034 for the variance.
    assert noise.mean().item() == pytest.approx(0.5772156649, abs=4 * 1.2825 / 1000)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=4 * 0.0034)
    assert stats.kstest(noise[:100_000].numpy(), "gumbel_r").pvalue > 0.001


def test_gumbel_noise_is_finite_where_the_exponential_rounds_to_zero(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, **_: self.zero_())
    assert gumbel_noise(torch.empty(3), gumbel(0)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gumbel_noise_is_the_same_for_every_precision_of_the_logits_and_of_the_process(dtype):
    expected, before = gumbel_noise(torch.empty(100), gumbel(0)), torch.get_default_dtype()
    assert torch.equal(gumbel_noise(torch.empty(100, dtype=dtype), gumbel(0)), expected)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(gumbel_noise(torch.empty(100), gumbel(0)), expected)
    finally:
        torch.set_default_dtype(before)


# -- GDAS: the draw

LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.1])


def draws_of(sampler, logits, temperature, seed):
    """Index of the drawn candidate, row by row: of soft gates the largest, which is an exact draw too."""
    return sampler(logits, temperature, gumbel(seed)).weights.argmax(dim=-1)


@pytest.mark.parametrize("temperature", [10.0, 1.0, 0.1])
@pytest.mark.parametrize("sampler", [*HARD, SOFT[1], pytest.param(Uniform(), id="Uniform")])
def test_draws_follow_the_distribution_at_every_temperature(sampler, temperature):
    draws = 100_000
    drawn = draws_of(sampler, LOGITS.expand(draws, -1), temperature, 7)
    observed = torch.bincount(drawn, minlength=len(LOGITS)).numpy()
    logits = torch.zeros_like(LOGITS) if isinstance(sampler, Uniform) else LOGITS
    expected = logits.double().softmax(dim=0).numpy() * draws
    assert stats.chisquare(observed, expected).pvalue > 0.001


def test_dirichlet_has_the_moments_of_its_definition():
    weights = Dirichlet()(LOGITS.expand(100_000, -1), 1.0, gumbel(7)).weights.double()
    beta = torch.nn.functional.elu(LOGITS.double()) + 1
    total = beta.sum()
    mean, variance = beta / total, beta * (total - beta) / (total**2 * (total + 1))
    assert torch.allclose(weights.mean(dim=0), mean, atol=4 * variance.max().sqrt().item() / 100_000**0.5)
    assert torch.allclose(weights.var(dim=0), variance, rtol=0.03)


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


# -- the other estimators, each against a reference


def unit_gradient(sampler, logits, seed, temperature=0.7):
    """(candidates, ...) gradient of each weight on its own: the Jacobian of the gates."""
    gates = sampler(logits, temperature, gumbel(seed))
    rows = [torch.autograd.grad(weight, logits, retain_graph=True)[0] for weight in gates.weights[0]]
    return gates, torch.stack(rows)


def single_choice():
    return torch.randn(1, 4, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("sampler", HARD[2:3] + HARD[4:])
def test_full_has_the_jacobian_of_the_soft_sample(sampler):
    logits = single_choice()
    _, jacobian = unit_gradient(sampler, logits, 3)
    y = ((logits.log_softmax(dim=-1) + gumbel_noise(logits, gumbel(3))) / 0.7).softmax(dim=-1).detach()[0]
    assert torch.allclose(jacobian[:, 0], (torch.diag(y) - torch.outer(y, y)) / 0.7, rtol=1e-6, atol=1e-9)


def test_softmax_is_softmax_and_its_jacobian():
    logits = single_choice()
    gates, jacobian = unit_gradient(Softmax(), logits, 3)
    p = logits.detach().softmax(dim=-1)[0]
    assert torch.equal(gates.weights[0], p)
    assert torch.allclose(jacobian[:, 0], torch.diag(p) - torch.outer(p, p))


def test_dirichlet_gradient_is_that_of_the_mean():
    """The reparameterised gradient is unbiased: averaged over draws it is the derivative of the exact mean."""
    logits = LOGITS.double().clone().requires_grad_()
    weights = Dirichlet()(logits.expand(400_000, -1), 1.0, gumbel(5)).weights
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)
    (got,) = torch.autograd.grad((weights * upstream).sum(dim=-1).mean(), logits)
    beta = torch.nn.functional.elu(logits) + 1
    (expected,) = torch.autograd.grad((beta / beta.sum() * upstream).sum(), logits)
    assert torch.allclose(got, expected, atol=5e-3)


def test_reinmax_is_the_published_formula():
    logits = single_choice()
    gates, jacobian = unit_gradient(GDAS(estimator="reinmax"), logits, 3)
    hard, tau = gates.weights.detach(), 0.7
    # pi_2 = 2 pi_1' - pi_0 / 2 with pi_1' = softmax at log pi_1, differentiated by hand.
    pi_0 = logits.detach().softmax(dim=-1)[0]
    pi_1 = (hard[0] + (logits.detach()[0] / tau).softmax(dim=-1)) / 2

    def softmax_jacobian(p):
        return torch.diag(p) - torch.outer(p, p)

    expected = 2 * softmax_jacobian(pi_1) - softmax_jacobian(pi_0) / 2
    assert torch.allclose(jacobian[:, 0], expected, rtol=1e-9, atol=1e-12)


def exact_gradient(logits, values):
    """d E[values[k]] / d logits with k ~ softmax(logits)."""
    p = logits.detach().softmax(dim=-1)
    return p * (values - (p * values).sum())


def test_reinmax_is_exact_for_two_candidates_and_any_function_where_straight_through_is_not():
    """For a binary variable and tau 1 Heun's method has no error left on a quadratic (Liu et al. 2023, sec. 3)."""
    logits = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)

    def loss(weights):  # quadratic in the gates, so that its gradient depends on the draw
        return (weights @ torch.tensor([1.0, -3.0], dtype=torch.float64)) ** 2

    def mean_gradient(sampler):
        rows = logits.expand(400_000, -1)
        weights = sampler(rows, 1.0, gumbel(6)).weights
        (gradient,) = torch.autograd.grad(loss(weights).mean(), logits)
        return gradient

    expected = exact_gradient(logits, loss(torch.eye(2, dtype=torch.float64)))
    assert torch.allclose(mean_gradient(GDAS(estimator="reinmax")), expected, atol=0.03)
    assert not torch.allclose(mean_gradient(StraightThrough()), expected, atol=0.1)


def test_estimators_draw_the_same_from_the_same_noise():
    logits = torch.randn(50, 5)
    drawn = [draws_of(GDAS(estimator=name), logits, 1.0, 2) for name in ESTIMATORS]
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])


@pytest.mark.parametrize("sampler", LEARNING)
def test_every_logit_gets_a_gradient_over_enough_draws(sampler):
    logits = torch.randn(1, 5, requires_grad=True)
    generator, upstream = gumbel(4), torch.randn(5)
    seen = torch.zeros(5, dtype=torch.bool)
    for _ in range(50):
        (gradient,) = torch.autograd.grad((sampler(logits, 1.0, generator).weights * upstream).sum(), logits)
        seen |= gradient[0] != 0
    assert seen.all()


@pytest.mark.parametrize("sampler", [param for param in LEARNING if param.id != "GDAS-reinmax"])
def test_limits_of_the_temperature(sampler):
    if isinstance(sampler, Softmax | Dirichlet):
        pytest.skip("takes no temperature")
    logits = torch.randn(200, 5, dtype=torch.float64, requires_grad=True)

    def soft(temperature):
        """The differentiable part: the gates themselves, or what their gradient comes from."""
        return ((logits.log_softmax(-1) + gumbel_noise(logits, gumbel(1))) / temperature).softmax(-1)

    upstream = torch.randn(5, dtype=torch.float64)
    for temperature, expected in ((1e6, torch.full((200, 5), 0.2, dtype=torch.float64)), (1e-6, None)):
        weights = sampler(logits, temperature, gumbel(1)).weights
        if isinstance(sampler, GumbelSoftmax):
            one_hot = torch.nn.functional.one_hot(weights.argmax(dim=-1), 5).double()
            assert torch.allclose(weights, one_hot if expected is None else expected, atol=1e-5)
        (got,) = torch.autograd.grad((weights * upstream).sum(), logits)
        (reference,) = torch.autograd.grad((soft(temperature) * upstream).sum(), logits)
        assert torch.allclose(got, reference, rtol=1e-6, atol=1e-12)


def test_uniform_takes_no_notice_of_the_logits_and_carries_no_gradient():
    logits = (torch.randn(50, 5) * 100).requires_grad_()
    gates = Uniform()(logits, 1.0, gumbel(1))
    assert torch.equal(gates.weights, Uniform()(torch.zeros(50, 5), 1.0, gumbel(1)).weights)
    assert not gates.weights.requires_grad


def test_unknown_estimator():
    with pytest.raises(ConfigError) as error:
        GDAS(estimator="gumbel")
    assert str(error.value) == (
        "sampler.estimator must be one of sampled, autodl, full, reinmax, got 'gumbel'; set sampler.estimator=sampled"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_million_draws_hold_no_nan(sampler, dtype):
    per_case = 1_000_000 // (4 * 3 * 4)
    for temperature in (100.0, 10.0, 0.1, 0.01):
        for scale in (0.0, 1.0, 20.0):
            logits = (torch.randn(per_case, 5) * scale).to(dtype).requires_grad_()
            masked = logits.masked_fill(torch.arange(5) >= 4, -torch.inf)
            gates = sampler(masked, temperature, gumbel(12))
            assert gates.weights.isfinite().all()
            assert gates.weights.dtype == dtype
            assert (gates.weights[:, 4] == 0).all()
            if gates.weights.requires_grad:
                (gates.weights * torch.randn(5).to(dtype)).sum().backward()
                assert logits.grad.isfinite().all()


@pytest.mark.parametrize("sampler", [*HARD, pytest.param(Uniform(), id="Uniform")])
def test_hard_gates_are_exactly_one_hot(sampler):
    weights = sampler(torch.randn(5_000, 8) * 3, 0.7, gumbel(10)).weights
    assert torch.equal(weights, torch.nn.functional.one_hot(weights.argmax(dim=-1), 8).float())


# -- every sampler


@pytest.mark.parametrize("sampler", STOCHASTIC)
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
    assert [(gate.weights, gate.others) for gate in gates.values()] == [(None, None)] * 2
    outputs = [gates[key].hard.run(nn.Identity(), torch.tensor(x)) for key, x in (("a", 3.0), ("b", 5.0))]
    sum(outputs).backward()
    assert weights.grad.tolist() == [[0.0, 3.0], [5.0, 0.0]]


def test_by_key_adds_the_gates_of_undrawn_candidates_where_they_count_as_ones():
    weights = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    gates = Gates(weights, torch.tensor([1, 0]), undrawn_as_ones=True).by_key(["a", "b"], differentiable=True)
    choice = Choice({name: nn.Identity() for name in ("x", "y", "z")})
    outputs = []
    for key, x in (("a", 3.0), ("b", 5.0)):
        with choice_gates({"choice": [choice]}, {"choice": gates[key]}):
            outputs.append(choice(torch.tensor(x)))
    assert [output.item() for output in outputs] == [3.0, 5.0]
    (outputs[0] * 3 + outputs[1] * 5).backward()
    assert weights.grad.tolist() == [[3.0, 9.0, 3.0], [25.0, 5.0, 5.0]]


def test_by_key_without_a_gradient_carries_no_graph():
    weights = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True) * 1
    drawn = Gates(weights, torch.tensor([1, 0])).by_key(["a", "b"], differentiable=False)
    assert [(gate.weights, gate.hard) for gate in drawn.values()] == [(None, None)] * 2
    soft = Gates(weights).by_key(["a", "b"], differentiable=False)
    assert all(gate.drawn is None for gate in soft.values())
    assert not any(w.requires_grad for gate in soft.values() for w in gate.weights)
    assert [[w.item() for w in gate.weights] for gate in soft.values()] == weights.tolist()


@pytest.mark.parametrize("differentiable", [True, False])
def test_by_key_refuses_a_drawn_candidate_whose_weight_is_not_one(differentiable):
    """Its output would not be multiplied by the weight."""
    gates = Gates(torch.tensor([[0.0, 1.0], [0.7, 0.3]], requires_grad=True) * 1, torch.tensor([1, 0]))
    with pytest.raises(ConfigError, match=r"draws candidate 0 of the choice b with the weight 0\.7, expected 1"):
        gates.by_key(["a", "b"], differentiable=differentiable)


def test_by_key_refuses_another_number_of_keys():
    with pytest.raises(ValueError, match="zip"):
        Gates(torch.eye(2), torch.tensor([0, 1])).by_key(["a"], differentiable=True)


@pytest.mark.parametrize("sampler", LEARNING)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_stop_at_once_and_name_their_choice(sampler, broken):
    logits = torch.zeros(3, 4)
    logits[1, 2] = broken
    gates = sampler(logits, 1.0, gumbel(1))
    for differentiable in (True, False):
        with pytest.raises(DivergenceError) as error:
            gates.by_key(["a", "b", "c"], differentiable=differentiable)
        assert str(error.value) == (
            "architecture: the logits of b are not finite, expected numbers; lower arch_optim.lr or weight_optim.lr"
        )


def test_weights_that_are_not_on_the_host_are_not_waited_for():
    # A tensor on the meta device has no values that could be looked at.
    by_key = Gates(torch.empty(2, 3, device="meta")).by_key(["a", "b"], differentiable=True)
    assert by_key["a"].drawn is None


@pytest.mark.parametrize(
    ("made", "got"),
    [
        (lambda logits: logits.softmax(-1), "a Tensor"),
        (
            lambda logits: Gates(logits.softmax(-1)[:, :1]),
            r"gates with weights, drawn of float32 \(2, 1\) and a NoneType",
        ),
        (lambda logits: Gates(logits.softmax(-1), torch.zeros(1, dtype=torch.int64)), r".* \(2, 3\) and int64 \(1,\)"),
        (lambda logits: Gates(logits.softmax(-1), torch.zeros(2)), r".* and float32 \(2,\)"),
    ],
)
def test_a_sampler_that_returns_other_gates_is_refused(made, got):
    """Fewer gates than candidates would run the first candidates alone."""

    class Own(Uniform):
        def __call__(self, logits, temperature, generator):
            return made(logits)

    arch = ArchParams.from_model(nn.ModuleList([choice_of(3), choice_of(3)]))
    with pytest.raises(ConfigError, match=rf"the sampler Own returned {got} for logits of \(2, 3\)"):
        draw(Own(), arch, 1.0, gumbel(0))


def choice_of(candidates):
    return Choice({str(index): nn.Identity() for index in range(candidates)})
