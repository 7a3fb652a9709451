"""Optimisers from a configuration: their steps, the learning rates of their groups, and which are refused."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from nas.errors import ConfigError
from nas.runtime.precision import Precision, check_first_step, take_step
from nas.settings import configuration
from nas.training.optimizers import build_optimizer, check_optimizer
from nas.training.schedule import initial_lr, keep_ratios, set_lr

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9}
ADAM = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.1}


def built(node, network=None):
    make = configuration.build(node)
    return build_optimizer(make, network or nn.Linear(3, 2), device=torch.device("cpu"), setting="weight_optim")


@pytest.mark.parametrize("other", ["foreach", "differentiable"])
def test_settings_that_exclude_each_other_are_refused(other):
    """torch raises RuntimeError for them."""
    with pytest.raises(ConfigError, match=r"torch\.optim\.SGD refuses its arguments: .*fused"):
        built(SGD | {"fused": True, other: True})


@pytest.mark.parametrize("node", [SGD, ADAM])
@pytest.mark.parametrize(
    ("given", "fused"),
    [
        ({}, True),
        ({"fused": False}, False),
        ({"foreach": True}, None),
        ({"foreach": False}, None),
        ({"differentiable": True}, None),
    ],
)
def test_how_it_computes_is_left_to_who_says_so_and_gives_the_same(node, given, fused):
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(network.state_dict())
    optimizer = built(node | given, network)
    arguments = {key: value for key, value in node.items() if not key.startswith("_")}
    plain = configuration.build(
        {"_target_": node["_target_"], "_partial_": True} | arguments, params=other.parameters()
    )
    assert optimizer.param_groups[0]["fused"] is fused
    for _ in range(3):
        for one, its in ((network, optimizer), (other, plain)):
            its.zero_grad()
            one(torch.ones(2, 3)).square().sum().backward()
            take_step(its, Precision().scaler())
    assert torch.allclose(network.weight, other.weight, atol=1e-6)
    assert all(weight.requires_grad and weight.is_leaf for weight in network.parameters())


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"_target_": "torch.optim.LBFGS", "_partial_": True},
            "weight_optim makes a LBFGS, whose step computes the loss several times by a closure, expected .*SGD",
        ),
        (ADAM | {"capturable": True}, r"weight_optim\.capturable=true is for CUDA graphs, got the device cpu; leave"),
        (
            {"_target_": "torch.nn.functional.mse_loss", "_partial_": True},
            "torch.nn.functional.mse_loss refuses its arguments",
        ),
    ],
)
def test_what_no_step_can_be_taken_with(node, message):
    with pytest.raises(ConfigError, match=message):
        built(node)


def test_what_is_no_optimiser():
    with pytest.raises(ConfigError, match=r"weight_optim makes a Linear, expected a torch\.optim\.Optimizer; name one"):
        check_optimizer(nn.Linear(1, 1), setting="weight_optim", device="cpu")


def test_groups_may_be_made_by_going_through_the_parameters_twice(capsys):
    def grouped(params):
        decayed = {"params": [one for one in params if one.ndim > 1], "weight_decay": 0.1}
        return torch.optim.SGD([decayed, {"params": [one for one in params if one.ndim <= 1]}], lr=0.1)

    made = build_optimizer(grouped, nn.Linear(3, 2), device=torch.device("cpu"), setting="weight_optim")
    assert [len(group["params"]) for group in made.param_groups] == [1, 1]
    assert not capsys.readouterr().err


def test_parameters_that_the_optimiser_lacks_and_those_of_something_else(capsys):
    network = nn.Linear(3, 2)

    def some(params):
        return torch.optim.SGD(list(params)[:1], lr=0.1)

    def others(params):
        return torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)

    def build(make):
        return build_optimizer(make, network, device=torch.device("cpu"), setting="weight_optim")

    build(some)
    assert capsys.readouterr().err == (
        "warning: the SGD that weight_optim makes leaves out 1 parameters, which will not learn: bias\n"
    )
    network.bias.requires_grad_(False)
    build(some)
    assert not capsys.readouterr().err
    with pytest.raises(ConfigError, match="weight_optim makes a SGD of other parameters than those it is given"):
        build(others)


class Sharp(torch.optim.SGD):
    """Needs a closure, and only says so when it steps, as published implementations of SAM do."""

    def step(self, closure=None):
        assert closure is not None, "requires closure"


class Untrained(torch.optim.SGD):
    """Is to be told that training begins, as schedule-free optimisers are."""

    def step(self, closure=None):
        raise Exception("not in train mode")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Sharp, "AssertionError: requires closure"),
        (Untrained, "Exception: not in train mode"),
        (torch.optim.SparseAdam, "does not support dense gradients"),
    ],
)
def test_a_first_step_that_fails_is_told_in_one_line(kind, reason):
    with pytest.raises(ConfigError, match=rf"the optimiser {kind.__name__} cannot take its first step \(.*{reason}"):
        check_first_step(kind([nn.Parameter(torch.ones(2))], lr=0.1))


def test_an_optimiser_that_refuses_sparse_gradients_names_their_cause():
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2).to_sparse()
    try:
        torch._foreach_norm([weight.grad])
    except NotImplementedError:
        pytest.skip("this release of torch has no norm of sparse gradients, so the trial before a training names them")
    with pytest.raises(ConfigError, match=r"RuntimeError.*; make the gradients dense, e.g. nn.Embedding"):
        take_step(torch.optim.SGD([weight], lr=0.1, fused=True), Precision().scaler())


def test_a_later_step_that_fails_is_no_matter_of_settings(monkeypatch):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    check_first_step(optimizer)
    monkeypatch.setattr(optimizer, "step", Sharp([nn.Parameter(torch.ones(2))]).step)
    with pytest.raises(AssertionError):
        check_first_step(optimizer)


# -- learning rates of groups


@pytest.mark.parametrize(("group", "got"), [({}, "without a learning rate"), ({"lr": "0.1"}, "whose .* rate is a str")])
def test_an_optimiser_without_a_number_as_learning_rate_is_refused(group, got):
    with pytest.raises(ConfigError, match=f"weight_optim makes a Optimizer {got}, expected a number as lr"):
        check_optimizer(
            torch.optim.Optimizer(nn.Linear(1, 1).parameters(), {"beta": 0.5, **group}),
            setting="weight_optim",
            device="cpu",
        )


def grouped(*rates, lr=0.2):
    groups = [{"params": [nn.Parameter(torch.ones(2))], **({} if rate is None else {"lr": rate})} for rate in rates]
    return torch.optim.SGD(groups, lr=lr)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def test_ratios_are_those_of_torchs_schedulers():
    optimizer, theirs = grouped(None, 0.02), grouped(None, 0.02)
    scheduler = torch.optim.lr_scheduler.LinearLR(theirs, 1.0, 0.0, total_iters=4)
    for step in range(4):
        set_lr(optimizer, 0.2 * (1 - step / 4))
        assert rates(optimizer) == pytest.approx(rates(theirs))
        theirs.step()
        scheduler.step()


def test_the_first_group_that_learns_has_the_rate_itself():
    optimizer = grouped(0.0, 0.3, 0.1)
    assert initial_lr(optimizer) == 0.3
    for lr in (0.7, 0.0, 0.1):  # from 0 it comes back
        set_lr(optimizer, lr)
        assert rates(optimizer) == [0.0, lr, pytest.approx(lr / 3)]


def test_a_rate_that_is_a_tensor_is_written_into():
    rate = torch.tensor(0.2)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=rate)
    set_lr(optimizer, 0.05)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.05)


@pytest.mark.parametrize("earlier", [False, True])
def test_ratios_survive_a_checkpoint(earlier):
    """One of an earlier release, which had one rate for all; and one whose rate was another."""
    saved = grouped(0.4, 0.04)
    keep_ratios(saved)
    set_lr(saved, 0.1)
    state = copy.deepcopy(saved.state_dict())
    if earlier:
        for group in state["param_groups"]:
            group["lr"] = 0.1
    resumed = grouped(0.2, 0.02)
    keep_ratios(resumed)
    resumed.load_state_dict(state)
    set_lr(resumed, 0.1)
    assert rates(resumed) == [0.1, pytest.approx(0.01)]


def test_groups_keep_their_rates_when_others_are_removed_and_added():
    optimizer = grouped(0.2, 0.4, 0.1)
    keep_ratios(optimizer)
    del optimizer.param_groups[0]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.8})
    set_lr(optimizer, 0.04)
    assert rates(optimizer) == pytest.approx([0.04, 0.01, 0.08])


class Around(torch.optim.Optimizer):
    """Steps by another optimiser, and does not call the constructor of torch's, as Lookahead of timm does not."""

    def __init__(self, other):
        self.other, self.param_groups, self.state, self.defaults = other, other.param_groups, {}, other.defaults
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()

    def step(self, closure=None):
        return self.other.step(closure)

    def state_dict(self):
        return self.other.state_dict()

    def load_state_dict(self, state):
        self.other.load_state_dict(state)
        self.param_groups = self.other.param_groups


def test_an_optimiser_around_another_keeps_the_ratios_of_its_groups():
    def around(params):
        groups = [{"params": [one], "lr": rate} for one, rate in zip(params, (0.4, 0.04), strict=True)]
        return Around(torch.optim.SGD(groups))

    device = torch.device("cpu")
    saved, resumed = (build_optimizer(around, nn.Linear(3, 2), device=device, setting="optim") for _ in range(2))
    set_lr(saved, 0.1)
    resumed.load_state_dict(saved.state_dict())
    set_lr(resumed, 0.2)
    assert rates(resumed) == [0.2, pytest.approx(0.02)]
