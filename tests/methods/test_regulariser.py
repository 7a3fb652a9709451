import math

import pytest
import torch
from searchers import build_searcher
from torch import nn

from nas.errors import ConfigError
from nas.methods.first_order import FirstOrder
from nas.methods.regulariser import BetaDecay, Entropy, Regulariser, Sum
from nas.methods.sampler import GDAS, Softmax, Uniform
from nas.methods.second_order import SecondOrder
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice
from nas.training.schedule import Constant, Linear


class Small(nn.Module):
    """Choices of different sizes, so that the logits have padding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = Choice({name: nn.Linear(4, 4) for name in "abc"})
        self.two = Choice({name: nn.Linear(4, 3) for name in "de"})

    def forward(self, x):
        return self.two(self.one(x).tanh())


def arch_params(std=1.0):
    return ArchParams.from_model(Small(), init_std=std, generator=torch.Generator().manual_seed(1)).double()


def rows(arch):
    """The logits without their padding."""
    return [row[mask] for row, mask in zip(arch.logits.detach(), arch.mask, strict=True)]


def descend(regulariser, arch, steps=50, progress=1.0):
    optimizer = torch.optim.SGD(arch.parameters(), lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        regulariser(arch, progress).backward()
        optimizer.step()


@pytest.mark.parametrize(("weight", "decides"), [(1.0, True), (-1.0, False)])
def test_a_positive_entropy_weight_decides_and_a_negative_one_opens(weight, decides):
    arch = arch_params()
    before = arch.entropy().detach()
    descend(Entropy(weight=Constant(weight)), arch)
    assert ((arch.entropy() < before) == decides).all()
    assert arch.logits.isfinite().all()


def test_entropy_is_the_weighted_mean_of_its_definition():
    arch = arch_params()
    probs = [row.softmax(0) for row in rows(arch)]
    mean = sum(-(p * p.log()).sum() for p in probs) / 2
    for progress, weight in ((0.0, 0.0), (0.5, 0.1), (1.0, 0.2)):
        got = Entropy(weight=Linear(0.0, 0.2))(arch, progress)
        assert torch.allclose(got, weight * mean, rtol=1e-12)


def test_beta_decay_is_the_mean_log_sum_exp_and_pulls_each_logit_by_its_probability():
    arch = arch_params()
    loss = BetaDecay(weight=Linear(0.0, 50.0))(arch, 0.5)
    assert loss.item() == pytest.approx(25 * sum(math.log(row.exp().sum()) for row in rows(arch)) / 2, rel=1e-12)
    loss.backward()
    assert torch.allclose(arch.logits.grad, 25 / 2 * arch.probs().detach(), rtol=1e-12)


def test_a_sum_adds_and_logs_its_terms():
    arch = arch_params()
    terms = {"entropy": Entropy(weight=Constant(2.0)), "decay": BetaDecay(weight=Linear(0.0, 50.0))}
    total = Sum(terms)
    assert total(arch, 0.3).item() == pytest.approx(sum(term(arch, 0.3).item() for term in terms.values()))
    logged = total.logged(arch, 0.3)
    assert logged == {f"regulariser/{name}": term(arch, 0.3).item() for name, term in terms.items()}


class Pull(Regulariser):
    """What a user may write: the sum of the real logits, with a metric of its own."""

    def __call__(self, arch, progress):
        return 3.0 * (arch.logits * arch.mask).sum() * progress

    def metrics(self, arch):
        return {"largest": float(arch.logits.max())}


def test_a_regulariser_of_ones_own_is_logged_with_its_metrics():
    arch = arch_params()
    logged = Sum({"pull": Pull()}).logged(arch, 1.0)
    assert logged.keys() == {"regulariser/pull", "regulariser/pull/largest"}
    assert Sum({"pull": lambda arch, progress: Pull()(arch, progress)}).logged(arch, 1.0).keys() == {"regulariser/pull"}


@pytest.mark.parametrize(("value", "got"), [(torch.ones(6), r"a tensor of shape \(6,\)"), (0.0, "0.0")])
def test_a_regulariser_that_returns_no_scalar_is_refused(value, got):
    with pytest.raises(ConfigError, match=f"^regulariser.mine returned {got}, expected a tensor with one number"):
        Sum({"mine": lambda arch, progress: value})(arch_params(), 0.0)


def test_an_error_in_a_regulariser_names_it():
    with pytest.raises(
        ConfigError, match=r"^regulariser.mine fails \(AttributeError: .*'logit'.*\); correct its __call"
    ):
        Sum({"mine": lambda arch, progress: arch.logit.sum()})(arch_params(), 0.0)


def searcher_of(kind, sampler, regulariser):
    supernet = Small()
    arch = ArchParams.from_model(supernet, init_std=0.5, generator=torch.Generator().manual_seed(1))
    return build_searcher(
        kind,
        supernet=supernet,
        arch=arch,
        sampler=sampler,
        regulariser=regulariser,
    )


@pytest.mark.parametrize(("kind", "sampler"), [(FirstOrder, GDAS()), (SecondOrder, Softmax()), (FirstOrder, Uniform())])
def test_the_architecture_step_adds_its_gradient_and_reports_the_loss_without_it(kind, sampler):
    generator = torch.Generator().manual_seed(3)
    batch = torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)
    results, gradients, before = [], [], []
    for regulariser in (None, Pull()):
        searcher = searcher_of(kind, sampler, regulariser)
        before.append(searcher.arch.logits.detach().clone())
        results.append(searcher.arch_step(batch, batch, 1.0, 0.5))
        gradients.append(before[-1] - searcher.arch.logits.detach())
    assert torch.allclose(gradients[1] - gradients[0], 1.5 * searcher.arch.mask.float(), atol=1e-6)
    assert torch.equal(results[0].loss, results[1].loss)
    assert results[1].grad_norm.item() == pytest.approx(gradients[1].norm().item(), rel=1e-5)


def test_the_weight_step_does_not_know_of_it():
    class Never(Regulariser):
        def __call__(self, arch, progress):
            raise AssertionError

    searcher = searcher_of(FirstOrder, GDAS(), Never())
    searcher.weight_step((torch.randn(8, 4), torch.randint(3, (8,))), 1.0)
    assert searcher.arch.logits.grad is None
