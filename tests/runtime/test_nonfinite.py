"""Numbers that are not finite, in the loss, a gradient, a weight and the logits."""

import copy

import pytest
import torch
from broken_numbers import Broken
from torch import nn

from nas.errors import ConfigError, DivergenceError
from nas.methods.first_order import FirstOrder
from nas.methods.sampler import GDAS, Softmax
from nas.methods.second_order import SecondOrder
from nas.methods.state import SearchState
from nas.runtime.nonfinite import Guard, OnNonfinite, each_norm
from nas.runtime.precision import Precision
from nas.supernet.arch_params import ArchParams
from nas.training.ema import Average
from nas.training.loop import RetrainState, TrainingStep
from nas.training.meter import Meter
from nas.training.task import Classification, Custom
from nas.training.task_state import TaskState

SKIP = OnNonfinite("skip", 2)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, 4, 4, generator=generator), torch.randint(3, (6,), generator=generator)


def searching(what="loss", passes=(), *, guard=None, sampler=None, cls=FirstOrder, precision="fp32"):
    """A searcher and the state it changes."""
    supernet = Broken(3, 3, what, passes)
    arch = ArchParams.from_model(supernet, generator=torch.Generator().manual_seed(1))
    optims = {
        "weight_optim": torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
        "arch_optim": torch.optim.Adam(arch.parameters(), lr=0.1, weight_decay=0.1),
    }
    shared = {
        **optims,
        "supernet": supernet,
        "arch": arch,
        "generator": torch.Generator().manual_seed(2),
        "scaler": Precision(precision).scaler(),
        "guard": guard or Guard(),
        "sampler": sampler or GDAS(),
    }
    state = SearchState(metric="accuracy", **shared)
    return cls(state, task=Classification(), precision=Precision(precision)), state


def step(searcher, number=0, level="both"):
    with searcher.guard.at(4, number):
        weights = searcher.weight_step(batch(), 1.0) if level != "architecture" else None
        arch = searcher.arch_step(batch(1), batch(), 1.0) if level != "weights" else None
    return weights, arch


def everything(*modules):
    return {
        f"{number}.{name}": tensor.clone()
        for number, module in enumerate(modules)
        for name, tensor in module.state_dict().items()
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def momenta(*optims):
    return [
        value.clone()
        for optim in optims
        for state in optim.state_dict()["state"].values()
        for value in state.values()
        if torch.is_tensor(value)
    ]


WRONG = {
    # Pass 3 is the second weight step, pass 4 the architecture step after it.
    "loss of the weights": ("loss", 3, "weights: the loss is nan", "weight_optim.lr"),
    "loss of the architecture": ("loss", 4, "architecture: the loss is nan", "weight_optim.lr or arch_optim.lr"),
    "gradient of the weights": (
        "gradient",
        3,
        "weights: the gradient of stem.weight has the norm nan",
        "weight_optim.lr",
    ),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("case", WRONG)
def test_a_search_stops_within_a_step_and_names_what_it_was(case, late):
    what, number, problem, lr = WRONG[case]
    searcher, _ = searching(what, [number], guard=Guard(late=late))
    step(searcher, 0)
    if late:  # as on a GPU, where it is read when the next step is under way
        step(searcher, 1)
    before = [p.detach().clone() for p in (*searcher.supernet.parameters(), *searcher.arch.parameters())]
    with pytest.raises(DivergenceError) as error:
        step(searcher, 1 + late)
    assert str(error.value) == (
        f"epoch 5, step 2, {problem}, expected finite numbers; lower {lr}, or skip such steps by "
        "runtime.on_nonfinite=skip"
    )
    if not late and number == 3:
        assert all(map(torch.equal, before, (*searcher.supernet.parameters(), *searcher.arch.parameters())))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_bad_state_is_not_there_to_be_saved(what):
    """What is still unread is read before anything is saved, and the weights are looked at themselves."""
    searcher, state = searching(what, [3], guard=Guard(late=True))
    step(searcher, 0)
    assert state.state_dict()["guard"] == {"skipped": 0}
    step(searcher, 1)
    with pytest.raises(DivergenceError, match=r"epoch 5, step 2, weights: the (loss|gradient of stem.weight)"):
        state.state_dict()

    searcher, state = searching()
    step(searcher, 0)
    searcher.supernet.head.bias.data[1] = torch.inf
    with pytest.raises(DivergenceError, match=r"epoch 5, step 1, weights: there are numbers in head.bias that"):
        state.state_dict()


def test_a_weight_that_is_not_finite_is_named_rather_than_the_loss_it_spoils():
    searcher, _ = searching()
    searcher.supernet.stem.weight.data[1, 0] = torch.nan
    with pytest.raises(DivergenceError, match=r"weights: there are numbers in stem\.weight that are not finite"):
        step(searcher)


@pytest.mark.parametrize("sampler", [GDAS(), Softmax()])
@pytest.mark.parametrize("skips", [False, True])
def test_logits_that_are_not_finite_stop_a_search_in_either_mode(sampler, skips):
    """There is nothing to go on with."""
    searcher, state = searching(guard=Guard(SKIP if skips else None), sampler=sampler)
    step(searcher, 0)
    searcher.arch.logits.data[0, 1] = torch.nan
    with pytest.raises(DivergenceError, match="epoch 5, step 2, architecture: the logits of block are not finite"):
        step(searcher, 1)
    with pytest.raises(DivergenceError, match="architecture: there are numbers in the logits of block that are not"):
        state.state_dict()


@pytest.mark.parametrize("cls", [FirstOrder, SecondOrder])
def test_a_gradient_of_the_logits_is_named_by_their_choice(cls):
    searcher, _ = searching(sampler=Softmax(), cls=cls)
    step(searcher, 0)
    searcher.arch.logits.register_hook(lambda gradient: gradient * torch.tensor([[torch.nan, 1.0]]))
    with pytest.raises(DivergenceError, match="step 2, architecture: the gradient of the logits of block has the norm"):
        step(searcher, 1)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("number", [3, 4])
def test_a_skipped_step_moves_nothing(what, number, capsys):
    """Weights, logits, momentum and running statistics; and its level measures nothing, and the other one is taken."""
    searcher, state = searching(what, [number], guard=Guard(SKIP), sampler=Softmax())
    step(searcher, 0)
    level = "weights" if number == 3 else "architecture"
    if number == 4:
        step(searcher, 1, "weights")
    before, moved = everything(searcher.supernet, searcher.arch), momenta(searcher.weight_optim, searcher.arch_optim)
    result = step(searcher, 1, level)[number == 4]
    if what == "gradient" and number == 4:  # of the stem, which the architecture step computes none of
        assert not result.skipped
        return
    assert result.skipped
    assert same(before, everything(searcher.supernet, searcher.arch))
    assert all(map(torch.equal, moved, momenta(searcher.weight_optim, searcher.arch_optim)))
    assert capsys.readouterr().err.startswith(f"warning: epoch 5, step 2, {level}: the ")
    assert state.state_dict()["guard"] == {"skipped": 1}
    assert searcher.guard.metrics() == {"skipped_steps": 1}
    meter = Meter("accuracy")
    meter.add(result)
    assert meter.summary("weights") == {}
    assert not step(searcher, 2, level)[number == 4].skipped
    assert not same(before, everything(searcher.supernet, searcher.arch))


def test_the_steps_that_are_skipped_have_a_bound(capsys):
    searcher, state = searching(passes=range(3, 20), guard=Guard(SKIP))
    step(searcher, 0)
    step(searcher, 1)
    resumed = Guard(SKIP)
    resumed.load_state_dict(state.state_dict()["guard"])
    assert resumed.skipped == 2
    with pytest.raises(DivergenceError) as error:
        step(searcher, 2)
    assert str(error.value) == (
        "epoch 5, step 3, weights: the loss is nan after 2 skipped steps, expected at most 2; lower weight_optim.lr, "
        "or raise runtime.max_skipped"
    )
    assert capsys.readouterr().err.count("warning: ") == 2


def retraining(what="loss", passes=(), *, guard=None, precision="fp32"):
    network = Broken(3, 3, what, passes)
    network.block = nn.Identity()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    average = Average(network, decay=0.9)
    return RetrainState(network, optimizer, average, scaler=Precision(precision).scaler(), guard=guard or Guard())


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_retraining_stops_or_skips_as_a_search_does(what, accumulation):
    take, passes = TrainingStep(accumulation=accumulation), [accumulation + 1]
    state = retraining(what, passes)
    take(state, batch(), Classification())
    with (
        pytest.raises(DivergenceError, match=r"epoch 1, step 2, weights: the .*; lower retrain.optim.lr, or"),
        state.guard.at(0, 1),
    ):
        take(state, batch(), Classification())

    state = retraining(what, passes, guard=Guard(SKIP))
    take(state, batch(), Classification())
    before, moved = copy.deepcopy(state.state_dict()), momenta(state.optimizer)
    assert take(state, batch(), Classification()).skipped
    after = state.state_dict()
    for network in ("network", "trained_network"):
        assert same(before[network], after[network])
    assert all(map(torch.equal, moved, momenta(state.optimizer)))
    assert after["average_updates"] == before["average_updates"] == 1
    assert not take(state, batch(), Classification()).skipped


class Running(nn.Module):
    """Network and loss: keeps a mean of what it is given, in buffers of which two are made in the first step."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.register_buffer("mean", torch.ones(()))
        self.register_buffer("first", None)

    def forward(self, x, targets=None):
        self.mean.mul_(0.5).add_(0.5 * x.detach().mean())
        self.first = x.detach().mean()
        self.register_buffer("new", self.first, persistent=False)
        return self.linear(x) if targets is None else (x * self.mean).mean()


def test_a_skipped_step_leaves_nothing_in_buffers_that_it_makes_and_in_those_of_the_loss():
    network, loss = Running(), Running()
    task = Custom(loss=loss, metric=lambda outputs, targets: outputs[:, 0], name="first", higher_is_better=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    state = RetrainState(network, optimizer, guard=Guard(SKIP), task=TaskState(task))
    assert TrainingStep()(state, (torch.full((2, 1), torch.nan), torch.zeros(2)), task).skipped
    for module in (network, loss):
        assert dict(module.named_buffers()) == {"mean": 1}
    assert not TrainingStep()(state, (torch.ones(2, 1), torch.zeros(2)), task).skipped


def test_an_overflow_that_the_scaler_of_fp16_skips_is_no_failure():
    searcher, _ = searching("gradient", [3], precision="fp16", guard=Guard())
    step(searcher, 0, "weights")
    searcher.supernet.done = [2]
    scale = searcher.scaler.get_scale()
    before = everything(searcher.arch)
    result, _ = step(searcher, 1, "weights")
    assert not result.grad_norm.isfinite()
    assert searcher.scaler.get_scale() == scale / 2
    assert same(before, everything(searcher.arch))
    searcher.supernet.passes = tuple(range(4, 100))
    overflows = (step(searcher, number, "weights") for number in range(2, 40))
    with pytest.raises(DivergenceError, match=r"weights: the gradient of stem\.weight has the norm"):
        list(overflows)  # until there is no scale left to lower
    assert searcher.scaler.get_scale() < 1


@pytest.mark.parametrize("bad", [("halt", 1), ("skip", 0)])
def test_settings_that_cannot_be(bad):
    with pytest.raises(ConfigError, match=r"runtime.(on_nonfinite|max_skipped) must be"):
        OnNonfinite(*bad)


def test_norms_are_those_that_torch_clips_by():
    tensors = [torch.randn(5, 3), torch.randn(7), torch.zeros(2)]
    assert torch.equal(torch.linalg.vector_norm(each_norm(tensors)), nn.utils.get_total_norm(tensors))
