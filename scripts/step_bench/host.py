"""The host's part of a search step: what it costs to start the work of a GPU. The GPU is imitated on the CPU.

    python -m step_bench.host CHECKOUT COMPOSED OVERRIDE...

Runs in a process of its own, with the packages of one checkout. Each line of the input names a method of `Host` and its
arguments, as JSON. The answer is what it returns, as a line of JSON.
"""

import contextlib
import functools
import gc
import json
import pkgutil
import statistics
import sys
import time
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SMALL = [
    "space=nas_bench_201",
    "space.channels=4",
    "data.size=8",
    "data.train=512",
    "search.batch_size=2",
    "sampler=gdas",
    "runtime.device=cpu",
    "runtime.threads=1",
]
AGAIN = 12  # draws that are taken again
SETTLING = 3  # iterations before those that count: after a collection, or another process, the caches are empty
COUNTING = 8
RECORDING = 40  # iterations that compute, so that next to all operations are recorded with values that are finite

# On a CPU these run a kernel for each tensor, on a GPU one for all.
FOR_ALL = ("_foreach_zero_", "_foreach_add_", "_foreach_mul_", "_fused_sgd_", "_fused_adam_", "_fused_adamw_")

# The parts of an iteration of this checkout: functions that do not call each other, but for the last one.
PARTS = {
    "drawing": ["nas.methods.first_order.FirstOrder.draw_ahead"],
    "gates": ["nas.methods.sampler.Gates.by_key"],
    "replayed passes": [
        "nas.methods.cuda_graphs.replayed_module.Replayed.__call__",
        "nas.methods.cuda_graphs.replay_pass.Run.backward",
    ],
    "loss and metric": ["nas.training.weighing.WeighedLoss.loss", "nas.training.task.Classification.measure"],
    "norms, clipping": ["nas.runtime.precision.each_norm", "nas.runtime.precision.clip"],
    "guard": ["nas.runtime.nonfinite.Guard.watch", "nas.runtime.nonfinite.Watch.passes"],
    "optimisers": ["nas.runtime.precision.fused_step", "nas.methods.first_order.zero_gradients"],
    "meters": ["nas.training.meter.Meter.add"],
    "autograd": ["torch.Tensor.backward"],
}


class Recorder:
    """Its launches do nothing, once all is recorded."""

    device = torch.device("cpu")
    kept = 0

    def __init__(self, composed):
        self.records, self._composed = True, composed

    def pool(self):
        return object()

    def rehearsing(self):
        return contextlib.nullcontext()

    def record(self, work, pool):
        work()

        def replay():
            if self.records:
                work()

        return replay

    def compose(self, places):
        return nothing if self._composed else None


class Calls(TorchDispatchMode):
    """Notes the operators that are called inside, with what they are given."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, operator, types, given=(), named=None):
        if operator.namespace == "aten" and operator is not torch.ops.aten._local_scalar_dense.default:
            self.noted.append((operator, given, named or {}))
        return operator(*given, **(named or {}))


def nothing(*arguments, **named):
    pass


def launch_nothing():
    """Lets the functions for many tensors return at once."""
    ones = list(torch.ones(1000).unbind())
    torch._foreach_norm = lambda tensors, *arguments, **named: ones[: len(tensors)]
    for name in FOR_ALL:
        setattr(torch, name, nothing)


class Host:
    def __init__(self, overrides, *, composed=True):
        from step_bench.bench import Bench

        try:
            from nas.methods.cuda_graphs.replayed_module import replay
        except ImportError:  # of 0.1.0
            from nas.replays.replayed import replay

        self.bench = Bench([*SMALL, *overrides])
        recorder = Recorder(composed)
        replay(self.bench.state.supernet, recorder)
        self.bench.state.guard._late = True  # as on a GPU: no step waits for the next
        self._iterations(RECORDING)
        recorder.records = False
        launch_nothing()
        generator = self.bench.state.generator
        self.starts = []
        for _ in range(AGAIN):
            self.starts.append(generator.get_state())
            self._iterations(1)
        self._iterations(RECORDING)  # composes

    def _iterations(self, count):
        for _ in range(count):
            self.times()

    def search(self, count):
        """Goes on searching. Returns the CPU seconds of an iteration, the mean, in a list like that of `block`."""
        found = [self.times() for _ in range(count)]
        return [[statistics.mean(part) for part in zip(*found, strict=True)]]

    def block(self, number):
        """Returns the CPU seconds of a few iterations, one after the other. number: of the block whose draws are taken
        again; None for new ones."""
        gc.collect()
        gc.disable()
        every = range(-SETTLING, COUNTING)
        found = [self.times(None if number is None else number * COUNTING + one) for one in every]
        gc.enable()
        return found[SETTLING:]

    def times(self, number=None):
        """Returns the CPU seconds of the batches, of the weight step, and of the architecture step of an iteration.

        number: of the draw that is taken again; None for another.
        """
        with contextlib.nullcontext() if number is None else self._drawn_again(number):
            started = time.process_time()
            batches, _ = self.bench.next_batches()
            data = time.process_time() - started
            (_, weight), (_, architecture) = self.bench.search_times(batches)
        return data, weight, architecture

    @contextlib.contextmanager
    def _drawn_again(self, number):
        """Inside, an iteration draws what one before has drawn. Afterwards the draws go on from where they were."""
        generator = self.bench.state.generator
        now = generator.get_state()
        generator.set_state(self.starts[number % AGAIN])
        yield
        generator.set_state(now)

    def operators(self, count=60):
        """Returns the CPU seconds that the operators of both steps take alone: the mean over the draws that are taken
        again of the medians over calls with the same arguments."""
        found = []
        for number in range(AGAIN):
            batches, _ = self.bench.next_batches()
            with self._drawn_again(number), Calls() as calls:
                self.bench.search_times(batches)
            found.append(statistics.median(seconds_of(calls.noted) for _ in range(count)))
        return statistics.mean(found)

    def parts(self, count=60):
        """Returns the CPU seconds of each part of an iteration: medians over iterations that draw again."""
        spent, rows = {}, []
        with contextlib.ExitStack() as stack:
            for part, names in PARTS.items():
                for name in names:
                    stack.enter_context(mock.patch(name, timed(pkgutil.resolve_name(name), part, spent)))
            for number in range(count):
                spent.clear()
                batches, *steps = self.times(number)
                spent["autograd"] -= spent["backward"]
                rows.append({"batches": batches, **{part: spent[part] for part in PARTS}, "the rest": 0.0})
                rows[-1]["the rest"] = sum(steps) + batches - sum(rows[-1].values())
        return {part: statistics.median(row[part] for row in rows) for part in rows[0]}


@torch.no_grad()
def seconds_of(calls):
    started = time.process_time()
    for operator, given, named in calls:
        operator(*given, **named)
    return time.process_time() - started


def timed(function, part, spent):
    """Returns the function, which adds its CPU seconds to those of the part."""

    @functools.wraps(function)
    def run(*arguments, **named):
        started = time.process_time()
        try:
            return function(*arguments, **named)
        finally:
            seconds = time.process_time() - started
            spent[part] = spent.get(part, 0.0) + seconds
            if function.__name__ == "backward" and part != "autograd":  # which autograd calls
                spent["backward"] = spent.get("backward", 0.0) + seconds

    return run


if __name__ == "__main__":
    checkout, composed, *overrides = sys.argv[1:]
    torch.set_num_threads(1)
    sys.path[:0] = [checkout, f"{checkout}/scripts"]
    with contextlib.redirect_stdout(sys.stderr):
        host = Host(overrides, composed=composed == "True")
    print("ready", flush=True)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(host, method)(*arguments)), flush=True)
