"""The cost of a search step, compared with a step of the plain network that it drew. Counted, not timed.

The search and the plain network are those of scripts/bench_step, which builds the plain network without asking the
supernet which of its parts are dead.
"""

import collections
import contextlib
import copy
import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nas.runtime.nonfinite import Guard
from nas.spaces.cell import Cell
from nas.supernet.freezing import freeze
from step_bench.ablation import OPTIMISATIONS
from step_bench.bench import Bench
from step_bench.counting import counted
from step_bench.memory import child

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_step"
SMALL = ["data.size=8", "data.train=32", "search.batch_size=4", "runtime.device=cpu", "space.channels=4"]
SPACES = {"nas_bench_201": ["space.cells=1"], "darts": ["space.cells=3", "space.steps=3"]}

# Operators beyond the floor's, all of them on a few numbers.
WEIGHT_STEP = 40  # sampling, what is measured, the norm of the gradient and clipping, what the guard reads
ARCH_STEP = 74  # sampling and its backward pass, what is measured, Adam, what the guard reads
ARCH_KEY = 12  # the gate of one row of logits as the scale of norms of three widths, and their gradients' sums
ARCH_CHOICE = 6  # a gate of which the inner product is its gradient, added to that of the others with its row

# Where the time goes: a weight step runs exactly the floor's, but for beginnings that operations share.
LARGE = ("convolution", "batch_norm", "pool", "threshold", "relu", "aten.cat", "mm")


@pytest.fixture(scope="module")
def script():
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader = importlib.machinery.SourceFileLoader("bench_step", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


@pytest.fixture(scope="module", params=SPACES)
def bench(request):
    made = Bench([f"space={request.param}", *SMALL, *SPACES[request.param]])
    made.search_times(made.next_batches()[0])
    return made


def large(operators):
    return {name: count for name, count in operators.counts.items() if any(part in name for part in LARGE)}


STARTS = {
    nn.ReLU: ("aten.relu", "aten.threshold_backward"),
    nn.AvgPool2d: ("aten.avg_pool2d", "aten.avg_pool2d_backward"),
    nn.MaxPool2d: ("aten.max_pool2d_with_indices", "aten.max_pool2d_with_indices_backward"),
}


def shared(floor):
    """How many operators of a plain network's cells, by name, compute what another one does: the operations that they
    begin leave the same node."""
    starts = collections.Counter(
        (cell, source, type(start), repr(start))
        for cell, modules in enumerate(floor.cells)
        for edges in modules.plan.values()
        for source, edge in edges
        if type(start := edge[0] if isinstance(edge, nn.Sequential) else edge) in STARTS
    )
    found = collections.Counter()
    for (_, _, kind, _), count in starts.items():
        found.update(dict.fromkeys(STARTS[kind], count - 1))
    return +found


def steps(bench, count):
    """(weight step, its floor's, architecture step, its floor's), each the operators and host transfers counted, and
    which operators the weight step has fewer than its floor."""
    for _ in range(count):
        pair, _ = bench.next_batches()
        floors = [bench.floor(chosen) for chosen in bench.coming()]
        plain = [counted(floors[0].weight_step, pair[0])]
        floors[1].prepare_arch()
        plain.append(counted(floors[1].arch_step, pair[1]))
        weight = counted(bench.searcher.weight_step, pair[0], 1.0)
        architecture = counted(bench.searcher.arch_step, pair[1], pair[0], 1.0)
        yield weight, plain[0], architecture, plain[1], shared(floors[0])


def test_operators_of_a_step_are_those_of_the_drawn_network(bench):
    places = sum(len(sharing) for sharing in bench.searcher.choices.values())
    keys = len(bench.state.arch.keys)
    fewer = collections.Counter()
    for (weight, _), (floor, _), (architecture, _), (arch_floor, _), less in steps(bench, 4):
        # Beyond the floor's: what is drawn is put together for the host.
        expected = large(floor) | {"aten.cat": large(floor).get("aten.cat", 0) + 1}
        assert large(weight) == {name: n for name, count in expected.items() if (n := count - less[name])}
        fewer += less
        # Momentum of operations that are drawn for the first time.
        begun = weight.counts.get("aten.zeros_like", 0)
        assert floor.total - 2 * less.total() <= weight.total <= floor.total + WEIGHT_STEP + begun
        # The floor goes back to the inputs of the first cells' choices, the search to their outputs.
        allowed = arch_floor.counts | {"aten.cat": arch_floor.counts.get("aten.cat", 0) + 1}
        assert all(count <= allowed.get(name, 0) for name, count in large(architecture).items())
        assert architecture.total <= arch_floor.total + ARCH_STEP + ARCH_KEY * keys + ARCH_CHOICE * places
    assert fewer["aten.relu"] > 0


def test_one_transfer_to_the_host_a_step(bench, monkeypatch):
    # As on a GPU, where what the guard reads is copied while the next step is computed.
    monkeypatch.setattr(bench.searcher, "guard", Guard(late=True))
    for (_, weight), _, (_, architecture), *_ in steps(bench, 2):
        assert weight.calls == ["tolist"]
        assert architecture.calls == ["tolist"]


def test_the_plain_network_of_a_cell_without_a_living_edge_into_its_output():
    bench = Bench(["space=nas_bench_201", *SMALL, "space.cells=1"])
    chosen = dict.fromkeys(bench.state.arch.keys, "none") | {"cell/0-1": "nor_conv_3x3"}
    assert chosen.keys() == set(bench.state.arch.keys)
    (batch, _), _ = bench.next_batches()
    frozen = freeze(copy.deepcopy(bench.state.supernet), chosen)
    assert torch.equal(bench.floor(chosen).network(batch[0]), frozen(batch[0]))


class WeightGradients(TorchDispatchMode):
    """Notes which backward passes of convolutions compute a gradient of weights."""

    def __init__(self):
        super().__init__()
        self.convolutions = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.convolutions.append(args[-1][1])
        return func(*args, **(kwargs or {}))


def test_an_architecture_step_computes_no_gradient_of_weights(bench):
    (weight_batch, arch_batch), _ = bench.next_batches()
    required = []
    hook = bench.state.supernet.register_forward_hook(
        lambda *_: required.append(any(weight.requires_grad for weight in bench.searcher.weights))
    )
    with WeightGradients() as seen:
        bench.searcher.weight_step(weight_batch, 1.0)
    assert required.pop()
    assert all(seen.convolutions)
    for weight in bench.searcher.weights:
        weight.grad = None
    with WeightGradients() as seen:
        bench.searcher.arch_step(arch_batch, weight_batch, 1.0)
    hook.remove()
    assert required == [False]
    assert not any(seen.convolutions)
    assert all(weight.grad is None and weight.requires_grad for weight in bench.searcher.weights)


class Updates(TorchDispatchMode):
    """Notes what the fused optimiser is given."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._fused_sgd_:
            self.weights += args[0]
        return func(*args, **(kwargs or {}))


def test_the_optimiser_touches_what_was_drawn_and_nothing_else(bench):
    for _ in range(4):
        pair, _ = bench.next_batches()
        floor = bench.floor(bench.coming()[0])
        floor.weight_step(pair[0])
        living = [weight for weight in floor.weights if weight.grad is not None]
        before = {weight: weight.detach().clone() for weight in bench.searcher.weights}
        with Updates() as seen:
            bench.searcher.weight_step(pair[0], 1.0)
        assert len(seen.weights) == len(living) < len(bench.searcher.weights)
        touched = {id(weight) for weight in seen.weights}
        assert all(id(weight) in touched or torch.equal(weight, old) for weight, old in before.items())
        # As SGD moves the plain network, apart from the clipping that this batch may need.
        assert sum(weight.numel() for weight in seen.weights) == sum(weight.numel() for weight in living)


def test_the_floor_computes_what_the_search_does(bench):
    for _ in range(3):
        pair, _ = bench.next_batches()
        floors = [bench.floor(chosen) for chosen in bench.coming()]
        assert not any(isinstance(module, Cell) for module in floors[0].network.modules())
        bench.floor_times(pair, floors)
        bench.search_times(pair)
        bench.check_agreement()


@pytest.mark.long
def test_the_script_prints_a_table_and_writes_json(script, monkeypatch, tmp_path, capsys):
    out = tmp_path / "found.json"
    overrides = ["space=nas_bench_201", *SMALL, "space.cells=1"]
    monkeypatch.setattr(sys, "argv", ["bench_step", *overrides, "--pairs", "2", "--out", str(out)])
    assert script.main() is None
    shown = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert {"times", "counts", "device", "waiting_for_data"} <= found.keys()
    assert 0 < found["memory"]["search_mib"] < 3000  # of a process of its own
    iteration = found["times"]["iteration"]["clock"]
    assert len(iteration["ratios"]) == 2
    assert f"{iteration['ratio']:.3f}" in shown
    monkeypatch.setattr(sys, "argv", ["bench_step", "--ablate", *overrides, "--pairs", "2", "--out", str(out)])
    assert script.main() is None
    assert json.loads(out.read_text()).keys() == OPTIMISATIONS.keys()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name != "all of them")) for name in OPTIMISATIONS]
)
def test_a_step_without_an_optimisation_trains_the_same(name):
    losses = []
    for context in (contextlib.nullcontext, OPTIMISATIONS[name]):
        torch.manual_seed(0)
        bench = Bench(["space=nas_bench_201", *SMALL, "space.cells=1"])
        with context():
            for _ in range(3):
                bench.search_times(bench.next_batches()[0])
                losses.append(float(bench.losses["search"]))
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-5)


def test_the_processes_that_memory_is_measured_in(tmp_path):
    """Here in one process: the floor follows what the search drew."""
    overrides, drawn = ["space=nas_bench_201", *SMALL, "space.cells=1"], tmp_path / "drawn.json"
    search = child("search", overrides, 2, drawn)
    assert search["peak"] > search["undrawn"] > 0
    assert search["peak"] >= search["start"]
    assert len(json.loads(drawn.read_text())) == 2
    floor = child("floor", overrides, 2, drawn)
    assert floor["peak"] >= floor["start"]


def test_data_of_the_users_choice():
    found = Bench(["data=digits", "space=nas_bench_201", "space.channels=4", "space.cells=1", "runtime.device=cpu"])
    assert found.stage.setup.data.spec.name == "digits"


def test_what_the_script_is_not_given_right(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_step", "--pairs", "1"])
    assert "at least 2, got 1" in script.main()
    monkeypatch.setattr(sys, "argv", ["bench_step", "spaec=darts"])
    assert script.main().startswith("error: ")
