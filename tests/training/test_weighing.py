"""Weights of examples: the losses of parts of a batch, or of batches of a split, add up to that of the whole."""

import copy
import functools
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.data.bundle import DataBundle
from nas.data.loader import Loader
from nas.data.spec import DataSpec
from nas.data.split import TensorSplit
from nas.errors import ConfigError
from nas.runtime.runtime import Runtime
from nas.settings import configuration
from nas.training.evaluate import score
from nas.training.job import Job
from nas.training.loop import RetrainState, TrainingStep
from nas.training.retrain_job import check_takes_probabilities
from nas.training.task import Classification, Custom, Regression
from nas.training.weighing import OnDevice, how_parts_add_up, known_weights, weights_of

LABELS = torch.tensor([[0, -100, 1, 2], [2, 2, -100, -100]])
CLASS_WEIGHTS = [1.0, 2.0, 4.0]


def right(outputs, targets):
    return (outputs.argmax(1) == targets).double().view(len(targets), -1).mean(1)


def custom(loss, **options):
    return Custom(loss=loss, metric=right, name="right", higher_is_better=True, **options)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Classification(), [3.0, 2.0]),
        (custom(F.cross_entropy), [3.0, 2.0]),
        (custom(functools.partial(F.cross_entropy, weight=CLASS_WEIGHTS)), [7.0, 8.0]),
        (custom(functools.partial(functools.partial(F.nll_loss, weight=torch.tensor(CLASS_WEIGHTS)))), [7.0, 8.0]),
        (custom(nn.CrossEntropyLoss(torch.tensor(CLASS_WEIGHTS))), [7.0, 8.0]),
        (custom(functools.partial(nn.NLLLoss, weight=[1, 2, 4], ignore_index=-100)), [7.0, 8.0]),
        (custom(functools.partial(nn.CrossEntropyLoss)), [3.0, 2.0]),
        (custom(F.mse_loss), None),
        (custom(F.mse_loss, weight=lambda targets: (targets > 0).sum(1)), [2.0, 2.0]),
        (Regression(), None),
        (object(), None),  # a task without the method
    ],
)
def test_how_examples_weigh(task, expected):
    found = weights_of(task, LABELS)
    assert (None if found is None else found.tolist()) == expected


def test_another_label_may_be_ignored():
    task = custom(functools.partial(F.cross_entropy, ignore_index=2))
    assert weights_of(task, LABELS.clamp_min(0)).tolist() == [3.0, 2.0]
    assert weights_of(task, torch.tensor([0, 2, 1])).tolist() == [1.0, 0.0, 1.0]


def test_probabilities_of_classes_weigh_alike():
    assert weights_of(Classification(), torch.full((2, 3, 4), 1 / 3)) is None
    assert weights_of(custom(functools.partial(F.cross_entropy, weight=CLASS_WEIGHTS)), torch.rand(2, 3)) is None


class Focal(nn.CrossEntropyLoss):
    def forward(self, outputs, targets):
        return super().forward(outputs, targets).square()


def test_a_loss_of_ones_own_is_not_taken_for_torchs():
    assert known_weights(Focal()) is None
    assert known_weights(lambda outputs, targets: F.cross_entropy(outputs, targets)) is None


@pytest.mark.parametrize(
    "loss",
    [functools.partial(F.cross_entropy, reduction="sum"), functools.partial(nn.CrossEntropyLoss, reduction="sum")],
)
def test_sums_are_refused(loss):
    with pytest.raises(
        ConfigError, match=r"task\.loss sums over the batch, expected its mean; .*task\.loss\.reduction"
    ):
        custom(loss)


OUTPUTS, TARGETS = torch.linspace(-1, 2, 24).view(8, 3).sin(), torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (F.cross_entropy, "mean"),
        (nn.CrossEntropyLoss(torch.tensor(CLASS_WEIGHTS)), "mean"),
        (lambda outputs, targets: F.cross_entropy(outputs, targets, ignore_index=2), "other"),
        (Focal(), "other"),
        (lambda outputs, targets: F.multi_margin_loss(outputs, targets, reduction="sum"), "sum"),
        (lambda outputs, targets: outputs.var() + torch.rand(()), "mean"),  # nothing can be told of a random one
        (lambda outputs, targets: outputs.std() / (len(targets) - 4), "mean"),  # or where a half has no loss
    ],
)
def test_how_the_losses_of_halves_add_up(loss, kind):
    assert how_parts_add_up(custom(loss), OUTPUTS, TARGETS) == kind
    assert how_parts_add_up(custom(loss), OUTPUTS.bfloat16(), TARGETS) == kind


def test_a_loss_that_adds_up_otherwise_is_told_before_a_run(capsys):
    data = types.SimpleNamespace(augment=None)

    def job(loss):
        return Job(runtime=Runtime(device="cpu"), space=None, data=data, task=custom(loss))

    job(F.cross_entropy).check_parts(OUTPUTS[:2], TARGETS)
    assert not capsys.readouterr().err
    job(Focal()).check_parts(OUTPUTS[:2], TARGETS)
    assert "warning: task.loss of a batch is not the mean of the losses of its halves" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"task\.loss sums over the batch, expected its mean; let it return the mean"):
        job(lambda outputs, targets: F.multi_margin_loss(outputs, targets, reduction="sum")).check_parts(
            OUTPUTS[:2], TARGETS
        )


# -- whole batches


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)).double()


def pixels():
    torch.manual_seed(1)
    x = torch.randn(8, 1, 4, 4, dtype=torch.float64)
    y = (x[:, 0] > 0).long() + (x[:, 0] > 1).long()
    y[4:].view(4, -1)[:, 1:] = -100
    return x, y


def without_labels():
    """One label an example; the last four have none that counts."""
    x, y = pixels()
    labels = y[:, 0, 0].clone()
    labels[4:] = -100
    return x, labels


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x):
        return self.body(x).mean((2, 3))


def hand_written(outputs, targets):
    """Whose own gradient is NaN where nothing counts."""
    counted = (targets != -100).to(outputs.dtype)
    losses = F.cross_entropy(outputs, targets.clamp_min(0), reduction="none")
    return (losses * counted).sum() / counted.sum()


TASKS = [
    Classification(),
    custom(functools.partial(nn.CrossEntropyLoss, weight=CLASS_WEIGHTS)),
    custom(hand_written, weight=lambda targets: (targets != -100).view(len(targets), -1).sum(1)),
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("made", [(network, pixels), (Pooled, without_labels)])
def test_parts_of_a_batch_give_its_gradient(made, task):
    model, (x, y) = made[0](), made[1]()

    def gradient(accumulation):
        trained = copy.deepcopy(model)
        state = RetrainState(trained, torch.optim.SGD(trained.parameters(), lr=0.0))
        loss = TrainingStep(accumulation=accumulation)(state, (x, y), task).loss
        return torch.cat([p.grad.flatten() for p in trained.parameters()]), loss

    expected, loss = gradient(1)
    for accumulation in (2, 3, 8):
        found, same_loss = gradient(accumulation)
        assert torch.allclose(found, expected, atol=1e-12, rtol=0)
        assert torch.allclose(same_loss, loss, atol=1e-6)
    assert expected.norm() > 0.01


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("made", [(network, pixels), (Pooled, without_labels)])
def test_a_score_does_not_depend_on_the_batch_size(made, task):
    model, (x, y) = made[0](), made[1]()
    spec = DataSpec(name="x", input_shapes=((1, 4, 4),), target_shape=tuple(y.shape[1:]), class_names=("a", "b", "c"))
    with torch.no_grad():
        expected = task.loss(model(x), y).item()
    for size in (1, 3, 8):
        loader = Loader(
            TensorSplit(x, y),
            spec=spec,
            batch_size=size,
            device=torch.device("cpu"),
            shuffle=False,
            drop_last=False,
            what="batch_size",
        )
        # Not the measures of classes, which single labels that do not count are not for.
        scored = score(model, loader, task if y.ndim > 1 else custom(task.loss, weight=task.weights), spec)
        assert scored.loss == pytest.approx(expected, abs=1e-9)


def test_a_batch_in_which_nothing_counts_has_no_loss():
    model = Pooled()
    state = RetrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x, y = without_labels()
    with pytest.raises(Exception, match="the loss is nan"):
        TrainingStep(accumulation=2)(state, (x, torch.full_like(y, -100)), Classification())


# -- losses as modules, and their arguments


def test_lists_become_tensors_and_follow_the_outputs():
    loss = OnDevice(functools.partial(F.cross_entropy, weight=[1, 5, 2], label_smoothing=0.1))
    outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for dtype in (torch.float32, torch.float64):
        expected = F.cross_entropy(
            outputs.to(dtype), targets, weight=torch.tensor([1, 5, 2], dtype=dtype), label_smoothing=0.1
        )
        assert torch.equal(loss(outputs.to(dtype), targets), expected)
    # What is no tensor by the signature stays a list.
    kept = OnDevice(functools.partial(lambda outputs, targets, sizes: sizes, sizes=[1, 2]))
    assert kept(outputs, targets) == [1, 2]


def test_a_task_from_a_configuration():
    node = {
        "_target_": "nas.training.Custom",
        "loss": {"_target_": "torch.nn.CrossEntropyLoss", "_partial_": True, "weight": [1, 2, 4]},
        "metric": "torch.nn.functional.cosine_similarity",
        "weight": "torch.nn.functional.relu",
        "name": "likeness",
        "higher_is_better": True,
    }
    with pytest.raises(ConfigError, match=r"_target_ 'torch\.nn\.functional\.relu' is none of the options that ship"):
        configuration.build(node)
    task = configuration.build(node, allow=["torch"])
    outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(task.loss(outputs, targets), F.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 2, 4])))
    assert task.weights(torch.tensor([2, 0])).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            custom(functools.partial(F.cross_entropy, weight=[1, 2])),
            r"task\.loss fails on outputs and targets of float32 \(2, 3\) and int64 \(2,\) \(RuntimeError: .*weight",
        ),
        (
            custom(F.cross_entropy, weight=lambda targets: targets.sum()),
            r"task\.weight returned shape \(\) for 2 examples, expected a tensor of shape \(2,\)",
        ),
        (
            custom(F.cross_entropy, weight=lambda targets: targets[5:]["x"]),
            r"task\.weight fails on targets of int64 \(2,\) \(.*Error: ",
        ),
    ],
)
def test_functions_that_fail_are_told_in_one_line(task, message):
    spec = DataSpec(name="x", input_shapes=((3,),), target_shape=(), class_names=("a", "b", "c"))
    with pytest.raises(ConfigError, match=message):
        task.check(torch.randn(2, 3), torch.tensor([0, 1]), spec)


@pytest.mark.parametrize(
    ("weight", "problem"),
    [
        (lambda targets: torch.ones(3)[targets], r"the task refuses them \(IndexError: "),
        (lambda targets: targets != 0, r"the task's shapes are .*'weights': \(2, 3\)"),
    ],
)
def test_weights_that_take_labels_only_are_told_before_labels_are_smoothed(weight, problem):
    spec = DataSpec(name="x", input_shapes=((3,),), class_names=("a", "b", "c"))
    job = Job(
        runtime=Runtime(device="cpu"),
        space=None,
        data=types.SimpleNamespace(augment=None, spec=spec),
        task=Custom(loss=F.cross_entropy, metric=lambda o, t: o[:, 0], name="x", higher_is_better=True, weight=weight),
    )
    with pytest.raises(ConfigError, match=r"retrain.label_smoothing, .* make probabilities of classes .*" + problem):
        check_takes_probabilities(job)
    job.task._weight = None
    check_takes_probabilities(job)


def test_a_loss_of_all_pairs_of_outputs_and_targets_is_told_before_a_run(capsys):
    """(B, 1) against (B,) broadcasts, and is the mean of its parts if the outputs are equal."""
    job = Job(
        runtime=Runtime(device="cpu"),
        space=None,
        data=types.SimpleNamespace(augment=None),
        task=custom(lambda outputs, targets: (outputs - targets).square().mean()),
    )
    values = torch.tensor([1.0, 2.0, 4.0, 3.0])
    job.check_parts(values[:2], values)
    assert not capsys.readouterr().err
    job.check_parts(values[:2, None], values)
    assert "; outputs of (1,) and targets of () may broadcast to all pairs" in capsys.readouterr().err


def written(outputs, targets):
    targets[targets == 2] = 0
    return F.cross_entropy(outputs, targets)


def zeroed(outputs, targets):
    return outputs.data.zero_().argmax(1) == targets


@pytest.mark.parametrize(("loss", "metric"), [(written, right), (F.cross_entropy, zeroed)])
def test_a_loss_or_metric_that_writes_into_what_it_gets_is_refused(loss, metric):
    task = Custom(loss=loss, metric=metric, name="right", higher_is_better=True)
    spec = DataSpec(name="x", input_shapes=((3,),), class_names=("a", "b", "c"))
    bundle = DataBundle(spec, *[TensorSplit(torch.zeros(2, 3), torch.arange(2))] * 2, augment=None)
    job = Job(runtime=Runtime(device="cpu"), space=None, data=bundle, task=task)
    with pytest.raises(ConfigError, match="the task writes into the outputs or the targets, which are used afterwards"):
        job.check_outputs(torch.eye(3)[:2] * 2, torch.tensor([0, 1]))
    missing = Custom(
        loss=F.mse_loss, metric=lambda outputs, targets: outputs - targets, name="x", higher_is_better=True
    )
    Job(runtime=Runtime(device="cpu"), space=None, data=bundle, task=missing).check_outputs(
        torch.tensor([1.0, torch.nan]), torch.ones(2)
    )
