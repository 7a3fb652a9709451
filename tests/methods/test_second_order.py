"""The second-order step, compared with closed forms and with torch's own SGD."""

import copy

import pytest
import torch
from searchers import build_searcher
from torch import nn
from torch.utils.checkpoint import checkpoint

from nas.errors import ConfigError, SpaceError
from nas.methods.dirichlet import Dirichlet
from nas.methods.sampler import GDAS, Gates, GumbelSoftmax, Softmax, Uniform
from nas.methods.second_order import SecondOrder
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice, choices, gates
from nas.training.task import Classification, Regression


class Scale(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x):
        return self.weight * x


def make(supernet, *, method, sampler=None, task=None, arch=None, **sgd):
    arch = arch or ArchParams.from_model(supernet, init_std=0.5, generator=torch.Generator().manual_seed(1)).double()
    return build_searcher(
        SecondOrder,
        supernet=supernet,
        arch=arch,
        task=task or Regression(),
        sampler=sampler or Softmax(),
        weight_optim=torch.optim.SGD(supernet.parameters(), **{"lr": 0.1, **sgd}),
        # A plain step of length 1: the gradient is what the logits moved by.
        method=method,
    )


def batch(x, target):
    return torch.tensor([x], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)


@pytest.mark.parametrize(("method", "tolerance"), [("exact", 1e-6), ("difference", 1e-3)])
def test_closed_form_of_a_quadratic(method, tolerance):
    """f = p_1 w_1 + p_2 w_2, L_train = (f - a)^2, L_val = (f' - b)^2, w'_k = w_k - 2 xi (f - a) p_k."""
    w, a, b, xi = torch.tensor([1.5, -0.7], dtype=torch.float64), 0.3, 2.0, 0.1
    searcher = make(Choice({"one": Scale(1.5), "two": Scale(-0.7)}), method=method, lr=xi)
    before = searcher.arch.logits.detach().clone()
    searcher.arch_step(batch(1.0, b), batch(1.0, a), 1.0)
    got = (before - searcher.arch.logits.detach())[0]

    p = before.softmax(dim=-1)[0]
    f = (p * w).sum()
    following = w - 2 * xi * (f - a) * p
    # d w'_k / d p_j = -2 xi (w_j p_k + (f - a) [j = k])
    moved = -2 * xi * (torch.outer(w, p) + (f - a) * torch.eye(2, dtype=torch.float64))
    slope = 2 * ((p * following).sum() - b) * (following + moved @ p)
    expected = (torch.diag(p) - torch.outer(p, p)) @ slope
    assert torch.allclose(got, expected, rtol=tolerance, atol=0)
    first_order = (torch.diag(p) - torch.outer(p, p)) @ (2 * (f - b) * w)
    assert not torch.allclose(got, first_order, rtol=0.05)


class Network(nn.Module):
    """Two choices between non-linear maps, of which two share a layer and two a weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.one = Choice({name: nn.Sequential(nn.Linear(3, 4), nn.Tanh()) for name in "ab"} | {"c": nn.Sequential()})
        self.one.candidates[2].extend([self.one.candidates[1][0], nn.Sigmoid()])
        self.two = Choice({name: nn.Linear(4, 2) for name in "de"})
        self.two.candidates[1].weight = self.two.candidates[0].weight
        self.double()

    def forward(self, x):
        return self.two(self.one(x))


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 2, (6,), generator=generator)


SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "dampening": {"momentum": 0.9, "dampening": 0.4},
    "weight decay": {"momentum": 0.9, "weight_decay": 0.1},
}


@pytest.mark.parametrize("frozen_at", [None, "first", "meanwhile"])
@pytest.mark.parametrize("steps_before", [0, 2], ids=["first step", "with momentum built up"])
@pytest.mark.parametrize("sgd", SGD)
@pytest.mark.parametrize(("method", "tolerance"), [("exact", 1e-6), ("difference", 1e-3)])
def test_the_gradient_is_that_of_the_loss_after_a_step_of_torchs_sgd(method, tolerance, sgd, steps_before, frozen_at):
    network = Network()
    network.one.candidates[0][0].requires_grad_(frozen_at != "first")
    searcher = make(network, method=method, task=Classification(), lr=0.3, **SGD[sgd])
    for step in range(steps_before):
        searcher.weight_step(data(10 + step), 1.0)
    network.one.candidates[0][0].requires_grad_(frozen_at is None)
    train, val = data(0), data(1)

    def loss_after_a_real_step(logits):
        twin, optimizer = copy.deepcopy((searcher.supernet, searcher.weight_optim))
        by_key = Gates(logits.softmax(dim=-1)).by_key(searcher.arch.keys, differentiable=False)
        with gates(choices(twin), by_key):
            optimizer.zero_grad()
            Classification().loss(twin(train[0]), train[1]).backward()
            optimizer.step()
            with torch.no_grad():
                return Classification().loss(twin(val[0]), val[1])

    masked = searcher.arch.masked().detach()
    expected = torch.zeros_like(masked)
    for index in searcher.arch.mask.nonzero().tolist():
        shift = torch.zeros_like(masked)
        shift[tuple(index)] = 1e-5
        difference = loss_after_a_real_step(masked + shift) - loss_after_a_real_step(masked - shift)
        expected[tuple(index)] = difference / 2e-5

    before = searcher.arch.logits.detach().clone()
    weights, held = copy.deepcopy(searcher.supernet.state_dict()), dict(searcher.supernet.named_parameters())
    searcher.arch_step(val, train, 1.0)
    got = before - searcher.arch.logits.detach()
    assert torch.allclose(got, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item() + 1e-9)
    assert all(torch.equal(weights[name], value) for name, value in searcher.supernet.state_dict().items())
    assert all(held[name] is weight for name, weight in searcher.supernet.named_parameters())
    assert isinstance(network.one.candidates[2][0].weight, nn.Parameter)
    frozen = {weight for weight in searcher.weights if not weight.requires_grad}
    assert frozen == (set() if frozen_at is None else set(network.one.candidates[0].parameters()))


def test_where_no_weight_learns_the_gradient_is_first_order():
    network = Network()
    searcher = make(network, method="exact", task=Classification(), lr=0.3)
    network.requires_grad_(False)
    logits = searcher.arch.masked().detach().requires_grad_()
    with gates(searcher.choices, Gates(logits.softmax(dim=-1)).by_key(searcher.arch.keys, differentiable=True)):
        Classification().loss(network(data(1)[0]), data(1)[1]).backward()
    searcher.arch_step(data(1), data(0), 1.0)
    torch.testing.assert_close(searcher.arch.logits.grad, logits.grad)


@pytest.mark.parametrize("sampler", [GumbelSoftmax(), Dirichlet()])
def test_the_two_methods_agree_for_stochastic_gates(sampler):
    logits = []
    for method in ("exact", "difference"):
        searcher = make(Network(), method=method, task=Classification(), sampler=sampler, lr=0.3)
        searcher.arch_step(data(1), data(0), 1.0)
        logits.append(searcher.arch.logits.detach())
    assert torch.allclose(*logits, rtol=1e-3, atol=1e-6)


def test_the_two_methods_agree_where_passes_are_random():
    logits, after = [], []
    for method in ("exact", "difference"):
        network = Network()
        network.one = nn.Sequential(network.one, nn.Dropout(0.5))
        searcher = make(network, method=method, task=Classification(), lr=0.3)
        torch.manual_seed(4)
        searcher.arch_step(data(1), data(0), 1.0)
        logits.append(searcher.arch.logits.detach())
        after.append(torch.get_rng_state())
    assert torch.allclose(*logits, rtol=1e-3, atol=1e-6)
    assert torch.equal(*after)
    assert not torch.equal(after[0], torch.manual_seed(4).get_state())


def test_choices_are_not_run_again_in_a_backward_pass_with_other_weights():
    network = Network()
    network.forward = lambda x: network.two(checkpoint(network.one, x, use_reentrant=False))
    with pytest.raises(SpaceError, match="without gates"):
        make(network, method="difference", task=Classification()).arch_step(data(1), data(0), 1.0)


@pytest.mark.parametrize("sampler", [GDAS(), GDAS(estimator="full"), Uniform()])
def test_a_sampler_that_is_not_relaxed_is_refused(sampler):
    with pytest.raises(ConfigError) as error:
        make(Network(), method="exact", sampler=sampler)
    assert str(error.value) == (
        "second-order search needs a sampler whose gates are a smooth function of the logits, got "
        f"{type(sampler).__name__}; set sampler=softmax, gumbel_softmax or dirichlet, or searcher=first_order"
    )


def test_settings_that_cannot_work():
    with pytest.raises(ConfigError, match=r"searcher\.method must be one of difference, exact, got 'finite'"):
        make(Network(), method="finite")
    with pytest.raises(
        ConfigError, match=r"method=difference shifts weights by less than 16 bits resolve, got .* in 16"
    ):
        make(Network().bfloat16(), method="difference")
    make(Network().bfloat16(), method="exact")
    arch = ArchParams.from_model(network := Network())
    with pytest.raises(ConfigError, match="unrolls a step of SGD, got Adam"):
        build_searcher(
            SecondOrder,
            supernet=network,
            arch=arch,
            sampler=Softmax(),
            weight_optim=torch.optim.Adam(network.parameters()),
            arch_optim=torch.optim.Adam(arch.parameters()),
            generator=torch.Generator(),
        )
