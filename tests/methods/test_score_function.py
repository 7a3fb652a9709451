"""The score function, compared with the exact gradient of the expected loss; searches with it, and refused settings."""

import itertools
import math

import pytest
import torch
from searchers import build_searcher
from torch import nn

from nas.errors import ConfigError, DivergenceError
from nas.methods.first_order import FirstOrder
from nas.methods.main_effects import MainEffects
from nas.methods.regulariser import Regulariser, Sum
from nas.methods.sampler import GDAS, gumbel_softmax
from nas.methods.score_function import ScoreFunction, indices_of
from nas.methods.second_order import SecondOrder
from nas.methods.state import SearchState
from nas.runtime import distributed
from nas.runtime.nonfinite import Guard, OnNonfinite
from nas.runtime.precision import Precision
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice, Gate, choices, gates
from nas.training.task import Classification


class Small(nn.Module):
    """Choices of different sizes, one of them inside of a candidate of another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        inner = Choice({name: nn.Linear(4, 4) for name in "ab"}, key="inner")
        self.one = Choice({"a": nn.Linear(4, 4), "b": nn.Sequential(inner, nn.Tanh()), "c": nn.Identity()}, key="one")
        self.two = Choice({name: nn.Linear(4, 4) for name in "ab"}, key="two")
        self.head = nn.Linear(4, 3)
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.head(torch.tanh(self.two(self.one(x))))


class Weighed(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = Choice({name: nn.Linear(4, 3) for name in "ab"}, key="one", group="sum", weighed=True)
        self.two = Choice({name: nn.Linear(4, 3) for name in "ab"}, key="two", group="sum", weighed=True)

    def forward(self, x):
        return self.one(x) + self.two(x)


def batch(seed=3, size=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator)


def make(sampler, kind=FirstOrder, model=Small, arch_lr=1.0, **arguments):
    supernet = model()
    arch = ArchParams.from_model(supernet, init_std=0.7, generator=torch.Generator().manual_seed(1))
    return build_searcher(
        kind,
        supernet=supernet,
        arch=arch,
        sampler=sampler,
        arch_optim=torch.optim.SGD(arch.parameters(), lr=arch_lr),
        **arguments,
    )


def losses_of_all(searcher, examples):
    """drawn candidates -> loss, for every architecture."""
    keys, found = searcher.arch.keys, {}
    counts = [len(searcher.arch.candidates[key]) for key in keys]
    for drawn in itertools.product(*map(range, counts)):
        by_key = {key: Gate(None, index) for key, index in zip(keys, drawn, strict=True)}
        with torch.no_grad(), gates(choices(searcher.supernet), by_key):
            found[drawn] = Classification().loss(searcher.supernet(examples[0]), examples[1])
    return found


def exact_gradient(searcher, examples):
    """d E[L] / d logits, by going through all architectures."""
    probs = searcher.arch.probs()
    expected = sum(
        torch.stack([probs[row, index] for row, index in enumerate(drawn)]).prod() * loss
        for drawn, loss in losses_of_all(searcher, examples).items()
    )
    return torch.autograd.grad(expected, searcher.arch.logits)[0]


def estimates(searcher, examples, count):
    """(count, choices, candidates): the gradients of so many steps that move nothing, losses looked up."""
    found, losses_of, sampler, arch = [], losses_of_all(searcher, examples), searcher.sampler, searcher.arch
    for _ in range(count):
        drawn = [sampler(arch.masked(), 1.0, searcher.generator) for _ in range(sampler.samples)]
        losses = torch.stack([losses_of[tuple(one.drawn.tolist())] for one in drawn])
        found.append(torch.autograd.grad(sampler.surrogate(arch, drawn, losses), arch.logits)[0])
        sampler.learn(arch, drawn, losses)
    return torch.stack(found)


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("control", [False, True])
def test_the_mean_is_the_exact_gradient_of_the_expected_loss(samples, control):
    searcher, examples = make(ScoreFunction(samples=samples, control=control), arch_lr=0.0), batch()
    exact = exact_gradient(searcher, examples)
    found = estimates(searcher, examples, 800)
    mean, error = found.mean(dim=0), found.std(dim=0) / len(found) ** 0.5
    assert torch.nn.functional.cosine_similarity(mean.flatten(), exact.flatten(), dim=0) > 0.99
    assert ((mean - exact).abs() <= 4 * error + 1e-7).all()  # no more than the noise of the mean
    assert (found[:, ~searcher.arch.mask] == 0).all()


@pytest.mark.parametrize("samples", [2, 3])
def test_candidates_that_no_network_has_drawn_and_choices_that_all_decide_alike_learn_nothing(samples):
    """Rounding errors of the advantages would be whole steps of Adam at the beginning."""
    searcher, met = make(ScoreFunction(samples=samples), arch_lr=0.0), 0
    for _ in range(40):
        drawn = [searcher.sampler(searcher.arch.masked(), 1.0, searcher.generator) for _ in range(samples)]
        losses = 2.3 + torch.rand(samples, generator=searcher.generator)
        found = torch.autograd.grad(searcher.sampler.surrogate(searcher.arch, drawn, losses), searcher.arch.logits)[0]
        indices = indices_of(drawn)
        alike = (indices == indices[0]).all(dim=0)
        assert torch.equal(found.abs().sum(dim=1) == 0, alike)
        undrawn = nn.functional.one_hot(indices, found.shape[1]).sum(dim=0) == 0
        assert not found[undrawn].any()
        met += int(alike.sum())
    assert met


def test_the_control_variate_and_more_draws_vary_less():
    def variance(**arguments):
        searcher = make(ScoreFunction(**arguments), arch_lr=0.0)
        return estimates(searcher, batch(), 600)[200:].var(dim=0).sum().item()

    plain = variance()
    assert variance(control=True) < 0.6 * plain
    assert variance(samples=4) == pytest.approx(plain / 3, rel=0.5)  # of n draws n (n - 1) / 2 pairs, which overlap


def test_two_draws_in_closed_form():
    searcher, examples = make(ScoreFunction(), arch_lr=0.0), batch()
    twin = torch.Generator().manual_seed(2)  # the searcher's own seed
    one, two = (gumbel_softmax(searcher.arch.masked(), 1.0, twin)[1] for _ in range(2))
    result = searcher.arch_step(examples, examples, 7.0)  # whatever the temperature
    assert not torch.equal(one, two)
    found, probs = losses_of_all(searcher, examples), searcher.arch.probs()
    losses = [found[tuple(drawn.tolist())] for drawn in (one, two)]
    scores = [nn.functional.one_hot(drawn, probs.shape[1]) - probs for drawn in (one, two)]
    expected = (losses[0] - losses[1]) * (scores[0] - scores[1]) / 2
    assert torch.allclose(searcher.arch.logits.grad, expected, rtol=1e-5, atol=1e-7)
    assert result.loss.item() == pytest.approx((losses[0] + losses[1]).item() / 2)
    assert result.grad_norm.item() == pytest.approx(expected.norm().item(), rel=1e-5)
    assert torch.equal(searcher.generator.get_state(), twin.get_state())


@pytest.mark.parametrize("samples", [2, 5])
def test_the_architecture_step_runs_forward_only(samples):
    searcher = make(ScoreFunction(samples=samples, control=True))
    before = [weight.detach().clone() for weight in searcher.weights]
    graphs = []
    searcher.supernet.register_forward_hook(lambda module, inputs, outputs: graphs.append(outputs.requires_grad))
    searcher.weight_step(batch(), 1.0)
    drawn = [weight.grad for weight in searcher.weights]
    assert graphs == [True]
    searcher.arch_step(batch(), batch(), 1.0)
    assert searcher.supernet.passes == 1 + samples
    assert graphs[1:] == [False] * samples
    assert all(weight.grad is gradient for weight, gradient in zip(searcher.weights, drawn, strict=True))
    assert any(
        not torch.equal(weight, old) for weight, old in zip(searcher.weights, before, strict=True)
    )  # weight step


def test_the_weight_step_draws_as_gdas_does():
    drawn = [
        indices_of([sampler(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), 3.0, generator)])
        for sampler, generator in (
            (GDAS(), torch.Generator().manual_seed(5)),
            (ScoreFunction(), torch.Generator().manual_seed(5)),
        )
    ]
    assert torch.equal(*drawn)


def test_the_expected_loss_falls_to_nearly_that_of_the_best():
    searcher, examples = make(ScoreFunction(samples=4), arch_lr=3.0), batch()

    def expected():
        probs = searcher.arch.probs().detach()
        weighed = [math.prod(probs[row, k] for row, k in enumerate(drawn)) * loss for drawn, loss in found.items()]
        return float(sum(weighed))

    found = losses_of_all(searcher, examples)
    best, before = float(min(found.values())), expected()
    for _ in range(150):
        searcher.arch_step(examples, examples, 1.0)
    assert expected() - best < 0.2 * (before - best)


class Pull(Regulariser):
    def __call__(self, arch, progress):
        return (arch.logits * torch.arange(arch.logits.numel()).view_as(arch.logits)).sum()


def test_the_gradient_of_a_regulariser_is_added():
    found = []
    for regulariser in (None, Sum({"pull": Pull()})):
        searcher = make(ScoreFunction(), regulariser=regulariser)
        searcher.arch_step(batch(), batch(), 1.0)
        found.append(searcher.arch.logits.grad)
    expected = torch.arange(found[0].numel()).view_as(found[0]).float()
    assert torch.allclose(found[1] - found[0], expected, atol=1e-5)


def test_losses_are_means_over_the_processes_before_they_become_advantages(monkeypatch):
    given = []

    class Asked(ScoreFunction):
        def surrogate(self, arch, drawn, losses):
            given.append(losses)
            return super().surrogate(arch, drawn, losses)

    other = torch.tensor([3.0, 1.0])  # of the other process
    searcher = make(Asked())
    drawn = [searcher._draw(1.0) for _ in range(2)]
    mine = torch.stack([searcher._without_gradient(batch(), one)[0] for one in drawn])
    monkeypatch.setattr(distributed, "means", lambda tensors: [(tensor + other) / 2 for tensor in tensors])
    searcher.generator.manual_seed(2)
    searcher.arch_step(batch(), batch(), 1.0)
    assert torch.equal(given[0], (mine + other) / 2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_keeps_the_gradient(precision):
    found = []
    for name in ("fp32", precision):
        searcher = make(ScoreFunction(samples=8), precision=Precision(name))
        searcher.arch_step(batch(), batch(), 1.0)
        found.append(searcher.arch.logits.grad.flatten())
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.99
    assert found[1].norm() == pytest.approx(found[0].norm().item(), rel=0.05)


def test_a_loss_that_is_not_finite_moves_nothing_and_is_not_learnt():
    searcher = make(ScoreFunction(control=True), guard=Guard(OnNonfinite("skip")))
    searcher.arch_step(batch(), batch(), 1.0)
    logits, known = searcher.arch.logits.detach().clone(), dict(searcher.sampler.state_dict())
    inputs, targets = batch()
    result = searcher.arch_step((inputs * math.inf, targets), batch(), 1.0)
    assert result.skipped
    assert torch.equal(searcher.arch.logits, logits)
    assert all(torch.equal(known[name], value) for name, value in searcher.sampler.state_dict().items())
    stopping = make(ScoreFunction())
    with pytest.raises(DivergenceError, match=r"architecture: the .* (nan|inf)"):
        stopping.arch_step((inputs * math.inf, targets), batch(), 1.0)


def test_logits_that_are_no_numbers_are_told():
    searcher = make(ScoreFunction())
    searcher.arch.logits.data[1, 0] = math.nan
    with pytest.raises(DivergenceError, match="the logits of inner are not finite"):
        searcher.weight_step(batch(), 1.0)


def state_of(searcher):
    return SearchState(
        supernet=searcher.supernet,
        arch=searcher.arch,
        weight_optim=searcher.weight_optim,
        arch_optim=searcher.arch_optim,
        generator=searcher.generator,
        scaler=searcher.scaler,
        metric="accuracy",
        sampler=searcher.sampler,
    )


@pytest.mark.parametrize("control", [False, True])
def test_a_resumed_search_goes_on_to_the_bit(control, tmp_path):
    def steps(searcher, numbers):
        for number in numbers:
            first, *others = searcher.draw_ahead(1.0)
            searcher.weight_step(batch(number), 1.0, first)
            searcher.arch_step(batch(number + 50), batch(number), 1.0, 0.0, others)

    def fresh():
        return make(ScoreFunction(control=control), arch_lr=0.1)

    whole = fresh()
    steps(whole, range(12))
    half = fresh()
    steps(half, range(7))
    torch.save(state_of(half).state_dict(), tmp_path / "checkpoint.pt")
    resumed = fresh()
    state_of(resumed).load_state_dict(torch.load(tmp_path / "checkpoint.pt"), source="checkpoint.pt")
    steps(resumed, range(7, 12))
    assert torch.equal(resumed.arch.logits, whole.arch.logits)
    assert all(torch.equal(one, two) for one, two in zip(resumed.weights, whole.weights, strict=True))
    assert bool(resumed.sampler.state_dict()) == control
    for name, value in whole.sampler.state_dict().items():
        assert torch.equal(resumed.sampler.state_dict()[name], value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ScoreFunction(samples=1), r"sampler\.samples must be at least 2, got 1"),
        (lambda: ScoreFunction(memory=0), r"sampler\.memory must be at least 1, got 0; set sampler\.memory=400"),
        (lambda: ScoreFunction(ridge=0), r"sampler\.ridge must be > 0, got 0; set sampler\.ridge=10"),
        (lambda: make(ScoreFunction(), SecondOrder), "second-order search needs a sampler .* got ScoreFunction"),
        (lambda: make(ScoreFunction(), model=Weighed), r"got weighed choices .*edge_normalisation=false"),
    ],
)
def test_what_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


# -- the regression


def test_main_effects_are_those_of_an_additive_loss():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(3, 4, generator=generator)
    effects = MainEffects(memory=1e6, ridge=1e-6)
    for step in range(200):
        drawn = torch.randint(4, (2, 3), generator=generator)
        losses = true[torch.arange(3), drawn].sum(dim=1) + 10 * step  # what the batch adds to both is no effect
        effects.add(drawn, losses, candidates=4)
    found = effects.effects(torch.zeros(3, 4))
    assert torch.allclose(found - found.mean(dim=1, keepdim=True), true - true.mean(dim=1, keepdim=True), atol=1e-4)


def test_main_effects_forget():
    effects = MainEffects(memory=5, ridge=1e-6)
    drawn = torch.tensor([[0], [1]])
    effects.add(drawn, torch.tensor([0.0, 1.0]), candidates=2)
    for _ in range(50):
        effects.add(drawn, torch.tensor([1.0, 0.0]), candidates=2)
    found = effects.effects(torch.zeros(1, 2))
    assert (found[0, 0] - found[0, 1]).item() == pytest.approx(1.0, abs=1e-3)


def test_no_effects_before_the_first_step_and_small_ones_under_a_large_ridge():
    effects = MainEffects(memory=10, ridge=1e3)
    assert torch.equal(effects.effects(torch.ones(2, 3)), torch.zeros(2, 3))
    effects.add(torch.tensor([[0, 1], [2, 1]]), torch.tensor([5.0, 0.0]), candidates=3)
    found = effects.effects(torch.ones(2, 3))
    assert 0 < found.abs().max() < 0.01
    assert torch.equal(found[1], torch.zeros(3))
