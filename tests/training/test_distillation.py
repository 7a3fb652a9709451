"""Networks that learn from a teacher: the loss, which passes have it, both levels of a search, and what is refused."""

import copy
import functools
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from custom_models import residual
from torch import nn

import nas
from nas.adapt import Teacher, narrower, skip
from nas.adapt.teacher import teacher_of
from nas.data import given
from nas.errors import ConfigError, SpaceError
from nas.methods import ScoreFunction, SecondOrder, Softmax
from nas.training.distillation import Distillation, Distilled, attached
from nas.training.hooks import Hook
from nas.training.loop import RetrainState, TrainingStep
from nas.training.task import Classification

RUN = {"epochs": 1, "batch_size": 8, "device": "cpu", "progress": False}
SEARCH = RUN | {"gap_batches": 0}


def images(count=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 1, 6, 6), generator=generator, dtype=torch.uint8), torch.arange(count) % 2


class Net(nn.Module):
    def __init__(self, width=3, classes=4):
        super().__init__()
        self.body, self.head = nn.Linear(5, width), nn.Linear(width, classes)
        self.writes = False  # into what the body returns

    def forward(self, x):
        features = self.body(x)
        return self.head(features.tanh_() if self.writes else features.tanh())


@pytest.fixture
def lesson():
    torch.manual_seed(0)
    teacher = Net().eval().requires_grad_(False)
    return Distillation(
        teacher=teacher, classes=4, share=0.3, temperature=2.0, features={"body": "body"}, feature_weight=0.7
    )


def expected_loss(net, lesson, x, y):
    soft = F.softmax(lesson.teacher(x) / 2, dim=1)
    divergence = (soft * (soft.log() - F.log_softmax(net(x) / 2, dim=1))).sum(1).mean()
    target = lesson.teacher.body(x)
    feature = (net.body(x) - target).square().mean() / target.square().mean()
    return 0.7 * F.cross_entropy(net(x), y) + 0.3 * 4 * divergence + 0.7 * feature


@pytest.mark.parametrize(("accumulation", "write"), [(1, ""), (2, ""), (1, "net"), (1, "teacher")])
def test_the_loss_of_a_step_is_the_task_s_and_the_teacher_s(lesson, accumulation, write):
    net, x, y = Net(), torch.randn(6, 5), torch.arange(6) % 4
    net.writes, lesson.teacher.writes = write == "net", write == "teacher"
    x[3:] = x[:3]  # so that the mean square of the teacher's features is that of each half
    task = Distilled(Classification(), lesson)
    expected = expected_loss(net, lesson, x, y)
    gradients = torch.autograd.grad(expected, list(net.parameters()))
    state = RetrainState(net, torch.optim.SGD(net.parameters(), lr=0.0))
    with attached(task, net):
        result = TrainingStep(accumulation=accumulation)(state, (x, y), task)
    assert float(result.loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)
    assert all(parameter.grad is None for parameter in lesson.teacher.parameters())


@pytest.mark.parametrize("ignored", [slice(1, None), slice(None)])
def test_the_teacher_s_part_of_a_loss_does_not_depend_on_which_labels_are_ignored(ignored):
    torch.manual_seed(0)
    teacher, net = (nn.Conv1d(2, 3, 1) for _ in range(2))
    x, y = torch.randn(4, 2, 5), torch.arange(20).view(4, 5) % 3
    y[2:, ignored] = -100  # of the second of two parts, some or all
    task = Distilled(Classification(), Distillation(teacher=teacher.eval().requires_grad_(False), classes=3))
    state, found = RetrainState(net, torch.optim.SGD(net.parameters(), lr=0.0)), []
    with attached(task, net):
        for accumulation in (1, 2):
            result = TrainingStep(accumulation=accumulation)(state, (x, y), task)
            found.append((result.loss, net.weight.grad))
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, atol=1e-6)


def test_only_passes_with_gradients_of_the_attached_network_are_taught(lesson):
    net, x, y = Net(), torch.randn(6, 5), torch.arange(6) % 4
    task, plain = Distilled(Classification(), lesson), F.cross_entropy(net(x), y)
    assert torch.equal(task.loss(net(x), y), plain)
    with attached(task, net):
        with torch.no_grad():
            assert torch.equal(task.loss(net(x), y), plain)
        outputs = net(x)
        assert not torch.equal(task.loss(outputs, y), plain)
        assert torch.equal(task.loss(outputs, y), plain)  # as of an auxiliary head
        other = copy.deepcopy(net)
    assert torch.equal(task.loss(net(x), y), plain)
    assert not net._forward_pre_hooks
    assert other is not net  # a copy holds no copy of the teacher: see `attached`
    assert task.metric is Classification.metric


def test_outputs_that_are_no_classes_are_compared_by_their_squares(lesson):
    regression = Distillation(teacher=lesson.teacher, classes=0, share=1.0)
    outputs, x = torch.randn(6, 4), torch.randn(6, 5)
    assert torch.allclose(regression.term(outputs, (x,), {}), (outputs - lesson.teacher(x)).square().mean())


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_one_score_is_that_of_the_second_of_two_classes(shape, lesson):
    outputs, taught = torch.randn(shape), torch.randn(shape)
    two = [F.softmax(torch.stack([torch.zeros(6), one.flatten()], dim=1) / 2, dim=1) for one in (outputs, taught)]
    divergence = (two[1] * (two[1].log() - two[0].log())).sum(dim=1).mean()
    assert torch.allclose(lesson.difference(outputs, taught), 4 * divergence, atol=1e-6)
    assert lesson.difference(outputs, taught) > 0
    assert float(lesson.difference(taught, taught)) == pytest.approx(0, abs=1e-6)


def test_a_task_that_is_taught_can_be_copied(lesson):
    task = copy.copy(Distilled(Classification(), lesson))
    assert task.metric is Classification.metric


def inserted(seed=3):
    torch.manual_seed(seed)
    return nas.insert(residual(), {"[12]": [skip(), narrower(0.5, multiple_of=1)]}, example=images()[0][:2].float())


class Counting(nn.Module):
    """A teacher that notes how often it runs, and whether gradients are on."""

    runs = []  # noqa: RUF012  also those of its copies

    def __init__(self):
        super().__init__()
        self.inner = residual()
        self.runs.clear()

    def forward(self, x):
        self.runs.append((len(x), torch.is_grad_enabled(), self.training, x.dtype))
        return self.inner(x)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 2),  # a weight step and an architecture step
        ({"sampler": ScoreFunction(samples=3)}, 1 + 3),
        ({"sampler": Softmax(), "searcher": functools.partial(SecondOrder, method="exact")}, 1 + 2),
    ],
)
def test_both_levels_of_every_search_learn_from_the_teacher(settings, passes):
    teacher = Counting().train()
    before = copy.deepcopy(teacher.state_dict())
    optim = functools.partial(torch.optim.SGD, lr=0.01)
    nas.search(inserted(), images(), teacher=teacher, weight_optim=optim, **SEARCH | settings)
    taught = [run for run in teacher.runs if run[0] == 8][-passes * 2 :]  # of the two steps; others were on trial
    assert taught == [(8, False, False, torch.float32)] * passes * 2
    assert all(torch.equal(one, before[name]) for name, one in teacher.state_dict().items())


def test_a_teacher_that_is_given_stays_as_it_is_and_is_in_no_checkpoint(tmp_path):
    teacher = residual().train()
    settings = RUN | {"directory": tmp_path / "run", "tracker": nas.storage.JsonLines}
    chosen = nas.Genotype("custom", {"1": "skip", "2": "width_0.5"})
    lesson = Teacher(network=teacher, share=1.0, features={"1": "1"})
    net = nas.retrain(inserted(), chosen, images(), teacher=lesson, **settings)
    assert teacher.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    saved = torch.load(tmp_path / "run" / "retrain" / "checkpoint.pt", weights_only=True)
    assert saved["network"].keys() == net.network.state_dict().keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.network.modules())
    without = nas.retrain(inserted(), chosen, images(), **RUN)
    assert not torch.equal(without.network[0].weight, net.network[0].weight)


def test_the_original_has_the_weights_that_a_search_begins_with():
    space = nas.adapt.Inserted(factory=residual, places={"1": "skip"})
    spec = given.training(images(), given.Reading()).spec
    random = torch.get_rng_state()
    runtime = nas.runtime.Runtime(device="cpu")
    teacher = Teacher().distillation(space, spec, runtime, seed=5).teacher
    assert torch.equal(torch.get_rng_state(), random)
    with torch.random.fork_rng():
        runtime.start(5)
        supernet = space.supernet(spec)
    assert torch.equal(teacher[1].conv1.weight, supernet[1].candidates[0].conv1.weight)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_network_that_is_its_own_teacher_moves_little():
    model = inserted()
    keep = nas.Genotype("custom", {"1": "keep", "2": "keep"})
    settings = RUN | {"optim": functools.partial(torch.optim.SGD, lr=0.01), "lr": nas.training.Constant(0.01)}
    taught, untaught = (
        nas.retrain(model, keep, images(), teacher=teacher, **settings) for teacher in (Teacher(share=1.0), None)
    )
    start = model[5].weight.detach()
    moved = [float((net.network[5].weight.detach() - start).abs().max()) for net in (taught, untaught)]
    assert moved[0] < moved[1] / 2


@pytest.mark.parametrize("kind", ["search", "retrain"])
def test_a_taught_run_that_is_stopped_goes_on_with_the_same_bits(kind, tmp_path):
    model, data = inserted(), images(16)
    settings = RUN | {"epochs": 2, "tracker": nas.storage.JsonLines, "teacher": Teacher(features={"1": "1"})}
    chosen = nas.Genotype("custom", {"1": "width_0.5", "2": "keep"})
    if kind == "search":
        call = functools.partial(nas.search, model, data, **settings | {"gap_batches": 0})
    else:
        call = functools.partial(nas.retrain, model, chosen, data, average=0.9, **settings)

    class Stop(Hook):
        def after_step(self, state):
            if state.epoch == 1:
                raise RuntimeError("stopped")

    call(directory=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        call(directory=tmp_path / "part", hooks=[Stop()])
    call(directory=tmp_path / "part", resume=True)
    one, other = (torch.load(tmp_path / name / kind / "checkpoint.pt", weights_only=True) for name in ("whole", "part"))
    for name in ("supernet", "arch") if kind == "search" else ("network", "trained_network"):
        assert all(torch.equal(a, b) for a, b in zip(one[name].values(), other[name].values(), strict=True)), name
    with pytest.raises(ConfigError, match=r"another configuration: teacher\.share=0\.9 \(was 0\.5\)"):
        call(resume=tmp_path / "part", teacher=Teacher(features={"1": "1"}, share=0.9))


def test_a_teacher_with_other_weights_is_told_on_resumption(tmp_path):
    def call(teacher, **settings):
        where = {"directory": tmp_path / "run", "tracker": nas.storage.JsonLines}
        return nas.search(inserted(), images(16), teacher=teacher, **where, **SEARCH, **settings)

    torch.manual_seed(0)
    first, other = residual(), residual()
    call(first)
    call(first, resume=True)
    with pytest.raises(ConfigError, match=r"^the teacher has other weights than when .*; give the same again, or"):
        call(other, resume=True)
    call(other, resume=True, may_change=["teacher"])


class OneOfThree(nn.Module):
    """Scores of classes in the last dimension."""

    def __init__(self):
        super().__init__()
        self.inner = residual(1, 2)

    def forward(self, x):
        return self.inner(x)[:, None].expand(-1, 3, -1)


class Broken(nn.Module):
    def forward(self, x):
        return x / 0


class Tuple(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: residual(1, 3), r"^the teacher returns \(2, 3\), expected what the network returns, \(2, 2\)"),
        (Tuple, r"^the teacher returns a tuple, expected what the network returns, \(2, 2\)"),
        (lambda: nn.Linear(7, 2), r"^the teacher cannot take inputs of float32 \(2, 1, 6, 6\) \(RuntimeError: "),
        (lambda: Teacher(features={"7": "1"}), r"^teacher\.features has 7, which is no module of the network; use a"),
        (lambda: Teacher(features={"1": "conv"}), r"^teacher\.features has conv, which is no module of the teacher"),
        (
            lambda: Teacher(features={"1.candidates.0.conv1": "1.conv1"}),
            r"^teacher\.features has 1\.candidates\.0\.conv1, which lies inside a choice of the network; use a",
        ),
        (
            lambda: Teacher(features={"1": "5"}),
            r"^teacher\.features has 1, which returns \(2, 8, 6, 6\), and 5 of the teacher, which returns \(2, 2\),",
        ),
        (lambda: Teacher(share=2.0), r"^teacher\.share must be between 0 and 1, got 2\.0; set teacher\.share=0\.5$"),
        (lambda: Teacher(temperature=0.0), r"^teacher\.temperature must be > 0, got 0\.0"),
        (lambda: Teacher(share=0.0), r"^the teacher teaches nothing, got teacher\.share=0 and no features"),
        (lambda: Teacher(weights="w.pt"), r"^teacher\.weights and teacher\.arguments are of a teacher that a factory "),
        (lambda: Teacher(share="x"), r"^teacher\.share must be a number, got 'x'; set teacher\.share=1$"),
        (lambda: Teacher(temperature=float("inf")), r"^teacher\.temperature must be a number, got inf"),
        (lambda: Teacher(feature_weight=float("nan")), r"^teacher\.feature_weight must be a number, got nan"),
        (lambda: Teacher(network=residual(), factory=residual), r"^the teacher is given twice, as network and as"),
        (lambda: Teacher(network=residual(), weights=3), r"^teacher\.weights is 3, expected the path of a file"),
        (lambda: Teacher(factory=residual, arguments=3), r"^teacher\.arguments is 3, expected names with values"),
        (lambda: Teacher(network=nn.Flatten), r"^teacher\.network is the class Flatten, expected a trained module"),
        (lambda: nn.Sequential(residual(), Broken()), r"^the teacher returns numbers that are not finite, expected"),
        (inserted, r"^the teacher has a Choice at 1, expected a trained network without choices"),
        (lambda: "mine", r"^teacher is 'mine', expected a trained module, 'original', or a nas\.adapt\.Teacher; give "),
    ],
)  # fmt: skip
def test_a_teacher_that_cannot_be_is_refused_before_training(teacher, message):
    with pytest.raises((ConfigError, SpaceError), match=message) as told:
        nas.search(inserted(), images(), teacher=teacher(), **SEARCH)
    assert "\n" not in str(told.value)


def test_scores_in_another_dimension_are_refused():
    lesson = Distillation(teacher=OneOfThree().eval(), classes=2)
    network, x = OneOfThree().eval(), torch.zeros(2, 1, 6, 6)
    with pytest.raises(
        SpaceError, match=r"^the network returns \(2, 3, 2\) for 2 classes, expected a score for each in"
    ):
        lesson.check(network, x, network(x))


def test_outputs_that_are_not_learnt_may_be_any():
    """With share=0 the features alone count."""
    teacher = nn.Sequential(OrderedDict(body=nn.Linear(5, 3), heads=Tuple())).eval()
    lesson = Distillation(teacher=teacher, classes=4, share=0.0, features={"body": "body"})
    net, x, y = Net(), torch.randn(6, 5), torch.arange(6) % 4
    lesson.check(net, x, net(x))
    task = Distilled(Classification(), lesson)
    with attached(task, net):
        loss = task.loss(net(x), y)
    target = teacher.body(x)
    feature = (net.body(x) - target).square().mean() / target.square().mean()
    assert torch.allclose(loss, F.cross_entropy(net(x), y) + feature)


def test_what_a_retraining_returned_can_teach():
    net = nas.retrain(residual(), None, images(), **RUN)
    assert teacher_of(net).network is net.network


def test_a_space_without_an_original_has_none():
    with pytest.raises(
        SpaceError, match=r"^teacher=original is the network that nas\.insert has put choices into, but"
    ):
        nas.search(nas.spaces.NasBench201(channels=2, cells=1), images(), teacher="original", **SEARCH)


def test_the_derived_network_is_checked_too():
    chosen = nas.Genotype("custom", {"1": "skip", "2": "keep"})
    with pytest.raises(SpaceError, match=r"^the teacher returns \(2, 3\), expected"):
        nas.retrain(inserted(), chosen, images(), teacher=residual(1, 3), **RUN)
