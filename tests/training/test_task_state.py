"""What the modules in a loss change: found, saved, restored, and said where it is not saved."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.runtime import distributed
from nas.training.loop import RetrainState
from nas.training.task import Classification, Custom
from nas.training.task_state import TaskState, buffers_kept, modules_of, parameters_of
from nas.training.unsaved_numbers import UnsavedNumbers


class Running(nn.Module):
    """A loss that divides by a running mean of its values."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))
        self.register_buffer("not_in_a_state_dict", torch.zeros(()), persistent=False)
        self.calls = 0

    def forward(self, outputs, targets):
        self.calls += 1
        self.not_in_a_state_dict += 1
        loss = F.cross_entropy(outputs, targets)
        self.mean.mul_(0.5).add_(0.5 * loss.detach())
        return loss / self.mean


class Method:
    def __init__(self, module):
        self.module = module

    def loss(self, outputs, targets):
        return self.module(outputs, targets)


def hits(outputs, targets):
    return outputs.argmax(1) == targets


def task(loss):
    return Custom(loss=loss, metric=hits, name="hits", higher_is_better=True)


def with_argument(outputs, targets, module):
    return module(outputs, targets)


BATCH = torch.eye(3)[:2], torch.tensor([0, 2])
OF_THE_MODULE = Running()


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda module: task(module), "loss"),
        (lambda module: task(functools.partial(with_argument, module=module)), "loss.module"),
        (lambda module: task(Method(module).loss), "loss.module"),
        (lambda module: task(lambda outputs, targets: module(outputs, targets)), "loss.module"),
        (Method, "module"),
    ],
)
def test_modules_of_a_task_are_found_wherever_it_holds_them(make, place):
    module = Running()
    assert modules_of(make(module)) == {place: module}


def test_modules_that_a_function_names_are_found():
    found = modules_of(task(lambda outputs, targets: OF_THE_MODULE(outputs, targets)))
    assert found == {"loss.OF_THE_MODULE": OF_THE_MODULE}
    assert modules_of(Classification()) == {}


def test_what_a_loss_changes_goes_into_a_new_one():
    first, second = Running(), Running()
    saved = task(first)
    state = TaskState(saved)
    assert state.state_dict() == {}
    saved.loss(*BATCH)
    content = {name: value.clone() for name, value in state.state_dict().items()}
    assert sorted(content) == ["loss.mean", "loss.not_in_a_state_dict"]
    state.reset()
    assert (state.state_dict(), first.mean) == ({}, 1)
    first.mean.copy_(content["loss.mean"])
    restored = task(second)
    TaskState(restored).load_state_dict(content)
    assert torch.equal(second.mean, first.mean)
    assert second.not_in_a_state_dict == 1
    assert restored.loss(*BATCH) == saved.loss(*BATCH)


def test_settings_of_a_loss_are_not_saved_and_others_may_go_on():
    """A run may be continued with other class weights."""
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    state = TaskState(task(loss))
    assert state.state_dict() == {}
    state.load_state_dict({"loss.weight": torch.ones(4), "loss.mean": torch.ones(())})
    assert loss.weight.tolist() == [1.0, 2.0, 3.0]


def test_a_task_may_say_itself_what_is_saved():
    class Own(Method):
        seen = 3

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"] + 1

    own = Own(Running())
    state = TaskState(own)
    assert state.state_dict() == {"seen": 3}
    state.load_state_dict({"seen": 5})
    assert own.seen == 6
    with buffers_kept(own):
        own.seen = 9
    assert own.seen == 7  # 6, and what loading adds
    state.reset()
    assert own.seen == 4  # 3 at the construction


def test_a_stage_begins_with_what_a_task_said_at_first_and_with_its_random_numbers():
    class Counting:
        def __init__(self):
            self.seen, self.generator = [0], torch.Generator().manual_seed(3)

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    own, augment = Counting(), Counting()
    state = TaskState(own, augment=augment)

    def use():
        own.seen[0] += 1
        return [float(torch.rand((), generator=one.generator)) for one in (own, augment)]

    drawn = use()
    state.reset()
    assert own.seen == [0]
    with buffers_kept(own):
        assert use() == drawn
    assert own.seen == [0]


def test_scoring_leaves_the_buffers_of_a_loss_as_they_were():
    module = Running()
    with buffers_kept(task(module)):
        module(*BATCH)
        assert module.mean != 1
    assert module.mean == 1
    assert module.not_in_a_state_dict == 0


def test_parameters_that_require_a_gradient_are_found():
    module = Running()
    module.scale, module.fixed = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()), requires_grad=False)
    assert parameters_of(task(module)) == ["loss.scale"]


@pytest.mark.parametrize(("saves", "said"), [(False, "task.seen, loss.calls"), (True, "loss.calls")])
def test_numbers_that_no_checkpoint_holds_are_said(capsys, saves, said):
    class Own:
        seen = 0

    module, own = nn.Sequential(Running()), Own()
    own.seen = 0
    if saves:
        own.state_dict = dict
    numbers = UnsavedNumbers({"task": own, "loss": module[0], "model": nn.BatchNorm1d(3)})
    numbers.say_which_changed()
    assert not capsys.readouterr().err
    own.seen += 1
    module[0](*BATCH)
    numbers.say_which_changed()
    assert f"warning: a training step changes {said}, which no checkpoint holds" in capsys.readouterr().err


def test_a_module_that_saves_more_than_its_buffers_is_left_alone(capsys):
    class Counting(Running):
        def get_extra_state(self):
            return {"calls": self.calls}

        def set_extra_state(self, state):
            self.calls = state["calls"]

    loss = Counting()
    numbers = UnsavedNumbers({"loss": loss})
    loss(*BATCH)
    numbers.say_which_changed()
    assert not capsys.readouterr().err


def test_each_process_goes_on_with_the_loss_of_its_own_share(monkeypatch):
    """A loss sees the share of its process alone, so its running statistics differ."""
    network, loss = nn.Linear(3, 3), Running()
    state = RetrainState(network, torch.optim.SGD(network.parameters(), lr=0.1), task=TaskState(task(loss)))
    loss.mean.fill_(2.0)
    monkeypatch.setattr(distributed, "of_all", lambda mine: [mine, {"loss.mean": torch.tensor(3.0)}])
    saved = state.state_dict()
    monkeypatch.setattr(distributed, "share", lambda: distributed.Share(1, 2))
    state.task.load_state_dict(distributed.of_this_process(saved["task"]))
    assert loss.mean == 3


class Bank(nn.Module):
    """A loss whose buffers grow, and that makes one of them in its first pass."""

    def __init__(self, width=1):
        super().__init__()
        self.register_buffer("bank", torch.zeros(0, width))
        self.register_buffer("last", None)

    def forward(self, outputs, targets):
        self.bank = torch.cat([self.bank, outputs[:, :1].detach()])
        self.last = outputs.detach()
        return F.cross_entropy(outputs, targets) + self.bank.sum()


def test_buffers_that_grow_are_saved_reset_and_kept():
    one, other, wide = Bank(), Bank(), Bank(width=2)
    saved, resumed, changed = (TaskState(task(loss)) for loss in (one, other, wide))
    one(*BATCH)
    with buffers_kept(task(one)):
        one(*BATCH)
    assert one.bank.shape == (2, 1)
    resumed.load_state_dict(saved.state_dict())
    assert torch.equal(other.bank, one.bank)
    assert torch.equal(other.last, one.last)
    changed.load_state_dict(saved.state_dict())
    assert wide.bank.shape == (0, 2)  # of another loss
    saved.reset()
    assert one.bank.shape == (0, 1)
    assert one.last is None
    assert not saved.state_dict()
