"""The estimators of a hard gate in a supernet: which candidates they use, what they add, and averages of draws."""

import pytest
import torch
import torch.nn.functional as F
from searchers import build_searcher
from torch import nn

from nas.errors import ConfigError
from nas.methods.dirichlet import Dirichlet
from nas.methods.first_order import FirstOrder
from nas.methods.sampler import GDAS, Gates, GumbelSoftmax, Softmax, StraightThrough, Uniform, gumbel_noise
from nas.methods.second_order import SecondOrder
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice, gates
from nas.training.task import Classification


class Small(nn.Module):
    """Two choices in a row and one beside them, of different sizes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = Choice({name: nn.Linear(4, 4) for name in "abcd"}, key="one")
        self.two = Choice({name: nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for name in "ab"}, key="two")
        self.three = Choice({name: nn.Linear(4, 4) for name in "abc"}, key="three")
        self.head = nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        return self.head(torch.tanh(self.two(self.one(x)) + self.three(x)))


def batch(seed=3, size=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, generator=generator).double(), torch.randint(3, (size,), generator=generator)


def make(sampler, kind=FirstOrder, seed=2, **sgd):
    supernet = Small()
    arch = ArchParams.from_model(supernet, init_std=0.7, generator=torch.Generator().manual_seed(1)).double()
    return build_searcher(
        kind,
        supernet=supernet,
        arch=arch,
        sampler=sampler,
        weight_optim=torch.optim.SGD(supernet.parameters(), **{"lr": 0.1, **sgd}),
        generator=torch.Generator().manual_seed(seed),
    )


def gate_gradients(sampler, seed, temperature=1.0):
    """(drawn, gradient of the loss in every gate (choices, candidates), soft sample), of one draw."""
    searcher = make(sampler)
    drawn = sampler(searcher.arch.masked(), temperature, torch.Generator().manual_seed(seed))
    leaf = drawn.weights.detach().requires_grad_()
    by_key = Gates(leaf, drawn.drawn, drawn.undrawn_as_ones).by_key(searcher.arch.keys, differentiable=True)
    with gates(searcher.choices, by_key):
        loss = Classification().loss(searcher.supernet(batch()[0]), batch()[1])
    (gradient,) = torch.autograd.grad(loss, leaf)
    return drawn.weights.argmax(dim=-1), gradient, loss


@pytest.mark.parametrize("seed", range(5))
def test_sampled_is_full_restricted_to_the_drawn_operation(seed):
    drawn, restricted, loss = gate_gradients(GDAS(estimator="sampled"), seed)
    same, full, full_loss = gate_gradients(GDAS(estimator="full"), seed)
    assert torch.equal(drawn, same)
    assert torch.allclose(loss, full_loss, rtol=1e-12)
    chosen = F.one_hot(drawn, full.shape[1]).double()
    assert torch.allclose(restricted, full * chosen, rtol=1e-10, atol=1e-14)
    assert (full * (1 - chosen)).abs().max() > 1e-3  # which is what the restriction leaves out


@pytest.mark.parametrize("seed", range(5))
def test_autodl_gives_undrawn_gates_the_gradient_of_an_operation_that_returns_1(seed):
    sampler = GDAS(estimator="autodl")
    drawn, got, loss = gate_gradients(sampler, seed)

    # The sum over all candidates as it is written, the outputs of undrawn ones replaced by the number 1.
    searcher = make(sampler)
    weights = F.one_hot(drawn, got.shape[1]).double().requires_grad_()
    rows = dict(zip(searcher.arch.keys, zip(weights, drawn.tolist(), strict=True), strict=True))

    def mixed(choice, x):
        row, k = rows[choice.key]
        return sum(row[i] * (op(x) if i == k else 1.0) for i, op in enumerate(choice.candidates))

    net, (x, labels) = searcher.supernet, batch()
    scores = net.head(torch.tanh(mixed(net.two, mixed(net.one, x)) + mixed(net.three, x)))
    reference = F.cross_entropy(scores, labels)
    (expected,) = torch.autograd.grad(reference, weights)
    assert torch.allclose(loss, reference, rtol=1e-12)
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-14)
    undrawn = searcher.arch.mask & ~F.one_hot(drawn, got.shape[1]).bool()
    assert (got[undrawn].abs() > 1e-6).all()


@pytest.mark.parametrize("estimator", ["sampled", "autodl"])
def test_undrawn_operations_keep_no_gradient_weight_or_momentum_moved(estimator):
    searcher = make(GDAS(estimator=estimator), momentum=0.9, weight_decay=0.1, nesterov=True)
    for step in range(12):  # until every operation has momentum
        searcher.weight_step(batch(step), 1.0)
    state = searcher.weight_optim.state
    assert all("momentum_buffer" in state[weight] for weight in searcher.weights)
    for step in range(5):
        before = {weight: (weight.detach().clone(), state[weight]["momentum_buffer"].clone()) for weight in state}
        # The draw that the step will make.
        twin = torch.Generator()
        twin.set_state(searcher.generator.get_state())
        drawn = searcher.sampler(searcher.arch.masked(), 1.0, twin).drawn.tolist()
        searcher.weight_step(batch(step), 1.0)
        searcher.arch_step(batch(step + 20), batch(step), 1.0)
        for key, index in zip(searcher.arch.keys, drawn, strict=True):
            (choice,) = searcher.choices[key]
            for k, candidate in enumerate(choice.candidates):
                for weight in candidate.parameters():
                    old, momentum = before[weight]
                    moved = k == index
                    assert (weight.grad is not None) == moved
                    assert torch.equal(weight, old) != moved
                    assert torch.equal(state[weight]["momentum_buffer"], momentum) != moved


# -- several samples


def gradient_of(searcher, temperature=1.0):
    before = searcher.arch.logits.detach().clone()
    result = searcher.arch_step(batch(), batch(4), temperature)
    return before - searcher.arch.logits.detach(), result


AVERAGED = [
    *((FirstOrder, GDAS, {"estimator": name}) for name in ("sampled", "autodl", "full", "reinmax")),
    *((FirstOrder, kind, {}) for kind in (GumbelSoftmax, StraightThrough, Dirichlet)),
    *((SecondOrder, kind, {}) for kind in (GumbelSoftmax, Dirichlet)),
]


@pytest.mark.parametrize(("kind", "sampler", "arguments"), AVERAGED)
def test_the_gradient_is_the_mean_over_the_draws(kind, sampler, arguments):
    singles, results = [], []
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        searcher = make(sampler(**arguments), kind)
        searcher.generator.set_state(generator.get_state())
        gradient, result = gradient_of(searcher)
        generator.set_state(searcher.generator.get_state())
        singles.append(gradient)
        results.append(result)
    assert not torch.allclose(singles[0], singles[1])
    searcher = make(sampler(**arguments, samples=3), kind)
    gradient, result = gradient_of(searcher)
    assert torch.allclose(gradient, torch.stack(singles).mean(dim=0), rtol=1e-10, atol=1e-14)
    assert torch.equal(searcher.generator.get_state(), generator.get_state())  # three draws, no more
    assert result.loss.item() == pytest.approx(sum(single.loss.item() for single in results) / 3)
    assert result.metric.item() == pytest.approx(sum(single.metric.item() for single in results) / 3)
    assert result.grad_norm.item() == pytest.approx(gradient.norm().item())
    assert all(weight.grad is None for weight in searcher.weights)


def test_more_draws_vary_less():
    def spread(samples):
        gradients = [gradient_of(make(GDAS(samples=samples), seed=seed))[0] for seed in range(60)]
        return torch.stack(gradients).var(dim=0).sum().item()

    assert spread(8) == pytest.approx(spread(1) / 8, rel=0.5)


def test_the_weight_step_takes_one_draw():
    searcher = make(GDAS(samples=5))
    searcher.weight_step(batch(), 1.0)
    reference = torch.Generator().manual_seed(2)
    gumbel_noise(searcher.arch.logits.detach(), reference)
    assert torch.equal(searcher.generator.get_state(), reference.get_state())


@pytest.mark.parametrize("sampler", [GDAS, GumbelSoftmax, StraightThrough, Dirichlet])
def test_no_samples_are_refused(sampler):
    with pytest.raises(ConfigError, match=r"sampler\.samples must be at least 1, got 0; set sampler\.samples=1"):
        sampler(samples=0)


@pytest.mark.parametrize("sampler", [Softmax, Uniform])
def test_samplers_with_nothing_to_average_take_no_samples(sampler):
    assert sampler().samples == 1
    with pytest.raises(TypeError):
        sampler(samples=2)
