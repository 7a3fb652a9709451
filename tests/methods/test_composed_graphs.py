"""A pass that is launched at once, and recorders that fail. On a CPU the recorder is one that does the work again."""

import collections
import copy

import pytest
import torch
from replayed_search import Again, assert_same, batch, searcher, steps
from torch import nn

from nas.cli.stages.search import SearchStage
from nas.methods.cuda_graphs import replay_pass
from nas.methods.cuda_graphs.account import Account
from nas.methods.cuda_graphs.replay_pass import NOTHING
from nas.methods.cuda_graphs.replayed_module import replay
from nas.methods.sampler import GDAS, Softmax
from nas.methods.score_function import ScoreFunction
from nas.runtime.precision import Precision
from nas.spaces.nas_bench_201 import NasBench201
from nas.supernet.choice import Choice, Gate, gates
from step_bench.bench import Bench
from step_bench.counting import Operators

# What is dispatched without a kernel.
VIEWS = {
    "detach",
    "view",
    "expand",
    "as_strided",
    "as_strided_",
    "t",
    "slice",
    "select",
    "empty",
    "empty_like",
    "promote_types",
}


class Composing(Again):
    """Composes what it has recorded, and counts what is launched, one by one and at once."""

    def __init__(self):
        super().__init__()
        self.replays = self.compositions = 0
        self.launches = []  # the rows of indices
        self.ran = []  # the work that was done, in order

    def record(self, work, pool):
        super().record(work, pool)

        def again(*, alone=True):
            self.replays += alone
            self.ran.append(work)
            work()

        return again

    def compose(self, places):
        self.compositions += 1
        held = [dict(place) for place in places]  # as a graph that is made holds what there was

        def launch(indices):
            self.launches.append(list(indices))
            for place, index in zip(held, indices, strict=True):
                if index in place:
                    place[index](alone=False)

        return launch


@pytest.fixture
def soon(monkeypatch):
    """Compositions are made after two quiet passes."""
    monkeypatch.setattr(replay_pass, "QUIET", 2)


@pytest.fixture
def supernet(spec, nas_bench_201):
    return nas_bench_201.supernet(spec).double()


@pytest.mark.usefixtures("soon")
def test_a_composed_search_is_the_same_in_any_shape(supernet):
    one, two = searcher(supernet, GDAS()), searcher(supernet, GDAS(), recorder := Composing())
    for size, count in ((8, 12), (12, 6), (8, 6)):
        assert_same(steps(one, count, size=size), steps(two, count, size=size), rtol=1e-9, atol=1e-12)
    assert recorder.compositions > 8  # of two levels and two directions for each shape, and again with what came later
    assert len(recorder.launches) > 8
    assert recorder.replays > 100
    assert any(NOTHING in row for row in recorder.launches)  # dead edges


@pytest.mark.usefixtures("soon")
def test_passes_without_gradients_are_replayed(supernet):
    """Of an architecture step by the score function: two networks, forward only."""
    one, two = searcher(supernet, ScoreFunction()), searcher(supernet, ScoreFunction(), recorder := Composing())
    assert_same(steps(one, 12), steps(two, 12), rtol=1e-6, atol=1e-8)
    recorder.ran.clear()
    two.arch_step(batch(0), batch(1), 1.0)
    assert {work.__name__ for work in recorder.ran} == {"forward"}


def test_no_autograd_node_of_the_weights_is_older_than_a_recording(supernet):
    """A GPU refuses to record a backward pass that ends in nodes of another stream."""

    def node(weight):
        return torch.autograd.graph.get_gradient_edge(weight).node

    class Looking(Again):
        def rehearsing(self):
            for weight in filter(lambda one: one.requires_grad, self.weights):
                node(weight).metadata["older"] = True  # for as long as something keeps the node
            return super().rehearsing()

        def record(self, work, pool):
            weights = work.__self__.weights
            self.older += sum("older" in node(weight).metadata for weight in weights)
            self.seen += len(weights)
            return super().record(work, pool)

    recorder = Looking()
    recorder.older = recorder.seen = 0
    precision = Precision("bf16", "cpu")  # under autocast, whose cache may keep casts of the weights
    made = searcher(supernet.float(), GDAS(), recorder, precision=precision)
    recorder.weights = list(made.supernet.parameters())
    steps(made, 1, dtype=torch.float32)
    assert recorder.seen > 0
    assert recorder.older == 0


@pytest.mark.usefixtures("soon")
def test_a_launch_runs_the_same_work_in_the_same_order(supernet):
    composing, single = Composing(), Composing()
    single.compose = lambda places: None
    for recorder in (composing, single):
        steps(searcher(supernet, GDAS(), recorder), 12)
    assert len(composing.launches) > 8
    assert not single.launches

    def order(recorder):
        return [
            (work.__name__, type(work.__self__.operation), work.__self__.target.value.shape) for work in recorder.ran
        ]

    assert order(composing) == order(single)


@pytest.mark.usefixtures("soon")
def test_what_is_drawn_anew_is_replayed_until_it_is_composed_too():
    model = Choice({"conv": nn.Conv2d(1, 1, 1), "same": nn.Identity()}).train()
    replay(model, recorder := Composing())
    ways = []
    for drawn in (0, 0, 1, 0, 1, 1):
        before = len(recorder.launches), recorder.replays
        with gates({"": [model]}, {"": Gate(None, drawn)}):
            output = model(x := torch.ones(1, 1, 2, 2))
        assert torch.equal(output, x if drawn else model.candidates[0](x))
        ways.append((len(recorder.launches) - before[0], recorder.replays - before[1]))
    # The third pass draws what is not recorded; the fourth is the second without a recording, and composes both.
    assert ways == [(0, 1), (1, 0), (0, 1), (1, 0), (1, 0), (1, 0)]
    assert recorder.compositions == 4


@pytest.mark.usefixtures("soon")
def test_what_cannot_be_recorded_keeps_a_pass_from_being_one_launch(supernet):
    class Sometimes(Composing):
        def record(self, work, pool):
            if isinstance(work.__self__.operation, nn.AvgPool2d):
                raise RuntimeError("operation not permitted when stream is capturing")
            return super().record(work, pool)

    recorder = Sometimes()
    expected = steps(searcher(supernet, GDAS()), 12)
    assert_same(expected, steps(searcher(supernet, GDAS(), recorder), 12), rtol=1e-9, atol=1e-12)
    assert recorder.launches


@pytest.mark.usefixtures("soon")
def test_a_resumed_search_has_the_bits_of_the_undisturbed_one(supernet):
    """Recordings are no part of a checkpoint: the second half begins by recording, the undisturbed one goes on."""
    parts = ("supernet", "arch", "weight_optim", "arch_optim")
    undisturbed = searcher(supernet, GDAS(), Composing())
    steps(undisturbed, 8)
    resumed = searcher(supernet, GDAS(), recorder := Composing())
    for part in parts:
        getattr(resumed, part).load_state_dict(copy.deepcopy(getattr(undisturbed, part).state_dict()))
    resumed.generator.set_state(undisturbed.generator.get_state())
    one, two = steps(undisturbed, 8), steps(resumed, 8)
    assert recorder.launches
    assert_same(one, two, rtol=0, atol=0)


@pytest.fixture
def published(spec, ops_tables):
    """The published depth, all edges but `none` being drawn for certain: two steps launch 383 operations."""
    torch.manual_seed(2)
    supernet = NasBench201(ops=ops_tables["nas_bench_201"], channels=4, cells=5).supernet(spec).double()

    def made(recorder):
        found = searcher(supernet, GDAS(), recorder)
        with torch.no_grad():
            found.arch.logits[:] = torch.nn.functional.one_hot(torch.tensor(3), 5) * 200.0
        return found

    return made


def test_an_iteration_in_the_published_space_is_four_launches(published, monkeypatch):
    monkeypatch.setattr(replay_pass, "QUIET", 1)
    eager, composed = published(None), published(recorder := Composing())
    assert_same(steps(eager, 1), steps(composed, 1), rtol=1e-9, atol=1e-12)
    for made in (eager, composed):
        steps(made, 1)
    recorder.launches.clear()
    recorder.replays = 0
    assert_same(steps(eager, 1), steps(composed, 1), rtol=1e-9, atol=1e-12)
    assert len(recorder.launches) == 4
    assert recorder.replays == 0
    assert sum(index != NOTHING for row in recorder.launches for index in row) == 383
    for (name, one), two in zip(eager.supernet.named_parameters(), composed.supernet.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        assert one.grad is None or torch.allclose(one.grad, two.grad, rtol=1e-9, atol=1e-12), name


def test_what_is_recorded_has_no_kernels_for_counters_and_scales(published):
    """Before: 2011, of which 192 for the counters of batch norms and 180 for the gates' scales."""
    composed = published(recorder := Composing())
    steps(composed, 2)
    recorder.ran.clear()
    steps(composed, 1)
    counts = collections.Counter()
    for work in recorder.ran[:]:
        with Operators() as operators:
            work()
        counts.update({name.removeprefix("aten."): count for name, count in operators.counts.items()})
    kernels = sum(count for name, count in counts.items() if name not in VIEWS)
    assert kernels <= 1639
    # No sum of a scale's gradient, no scale made. 96 norms in two steps; 90 edges of an architecture step add theirs.
    assert counts["native_batch_norm"] == 192
    assert counts["clone"] == 0


def test_counters_of_norms_are_those_of_the_eager_search(supernet):
    shared = nn.BatchNorm2d(4)
    twice = nn.Sequential(shared, nn.Tanh(), shared)
    cumulative = nn.Sequential(nn.BatchNorm2d(4, momentum=None), nn.ReLU())
    for part in (twice, cumulative):
        made = Choice({"one": part, "two": nn.Conv2d(4, 4, 1)}).train()
        replay(made, Composing())
        for _ in range(3):
            with gates({"": [made]}, {"": Gate(None, 0)}):
                made(torch.randn(2, 4, 3, 3)).sum().backward()
            made.zero_grad()
        assert part[0].num_batches_tracked == (6 if part is twice else 3)


class Failing(Composing):
    """Fails at a moment, counted over rehearsals and recordings."""

    def __init__(self, moment, error, *, before):
        super().__init__()
        self.left, self.error, self.before = moment, error, before

    def rehearsing(self):
        self.fails()
        return super().rehearsing()

    def fails(self):
        self.left -= 1
        if self.left == -1:
            raise self.error

    def record(self, work, pool):
        if not self.before:
            work()  # in a capture, which is not run
            if work.__name__ == "backward":
                work.__self__.forward()
        self.fails()
        return super().record(work, pool)


MEMORY = {
    "torch's": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
    "cuDNN's": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("moment", [0, 2, 100, *(pytest.param(moment, marks=pytest.mark.long) for moment in (1, 3))])
@pytest.mark.parametrize("error", MEMORY)
def test_out_of_memory_at_any_moment(supernet, moment, error, capsys):
    expected = steps(searcher(supernet, GDAS()), 5)
    recorder = Failing(moment, MEMORY[error], before=True)
    assert_same(expected, steps(searcher(supernet, GDAS(), recorder), 5), rtol=1e-9, atol=1e-12)
    assert recorder.left < 0
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1
    if moment % 3 == 0 and moment < 100:
        assert "is not replayed, as there is no memory for what its replay keeps; it runs as without" in told
    else:
        assert "no memory is left to record more for runtime.cuda_graphs (0 MiB are kept" in told
        assert "what is not recorded yet runs as without" in told


@pytest.mark.parametrize("sampler", [Softmax(), GDAS(estimator="autodl")])
def test_samplers_of_several_candidates_are_told_once(supernet, sampler, capsys):
    steps(searcher(supernet, sampler, Composing()), 2)
    assert capsys.readouterr().err.count("several that do, such passes run as without") == 1


def test_what_is_recorded_is_said_once_an_epoch(supernet, capsys):
    recorder = Again()
    recorder.kept = 3 * 2**20
    account = replay(supernet.train(), recorder)
    account.after_epoch(None)
    assert capsys.readouterr().err == ""
    images, _ = batch(0)
    found = {"": [module for module in supernet.modules() if isinstance(module, Choice)]}
    for _ in range(2):
        with gates(found, {"": Gate(None, 3)}):
            supernet(images)
        account.after_epoch(None)
    told = capsys.readouterr().err
    assert told == f"note: {account.described()}\n"
    assert "24 operations of 18 choices and their surroundings, and keeps 3 MiB" in told
    assert isinstance(account, Account)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["runtime.cuda_graphs=true"], "runtime.cuda_graphs needs a GPU, got cpu; the steps run as without"),
        (["runtime.cuda_graphs=composed"], "runtime.cuda_graphs needs a GPU, got cpu; the steps run as without"),
        ([], ""),
    ],
)
def test_without_a_gpu_the_search_says_so(overrides, reason, capsys):
    small = ["data.size=8", "data.train=32", "search.batch_size=4", "runtime.device=cpu", "space.channels=4"]
    made = Bench(["space=nas_bench_201", "space.cells=1", *small, *overrides]).stage
    assert isinstance(made, SearchStage)
    assert not made.setup.runtime.cuda_graphs
    told = capsys.readouterr().err
    assert told.count("runtime.cuda_graphs") == bool(reason)
    assert reason in told
