"""Times the next steps of a search beside their floor."""

import copy
import gc
import itertools
import statistics
import time

import torch

from nas.data.loader import search_batches
from nas.methods.sampler import Uniform, draw
from nas.runtime.runtime import MEMORY_FORMATS, synchronise
from step_bench.floor import Floor, plain_network

# Images like CIFAR's, unless the user chooses the data. The user's overrides come after these.
DEFAULTS = [
    "data=synthetic",
    "data.train=1024",
    "data.size=32",
    "data.classes=10",
    "data.crop_padding=4",
    "data.flip=true",
    "search.batch_size=64",
]
SIDES = ("floor", "search")
RECORDED = 100  # iterations after which almost every candidate has been drawn and recorded
CLOCK, CPU = 0, 1  # positions in a pair of seconds


class Bench:
    """A search whose next steps are timed, and the floors of these steps."""

    def __init__(self, overrides):
        from hydra import compose, initialize_config_dir

        from nas.cli.stages.search import SearchStage
        from nas.cli.stages.setup import Setup
        from nas.settings import configuration, schemas

        schemas.register_schemas()
        with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
            own_data = any(override.startswith("data=") for override in overrides)
            defaults = [one for one in DEFAULTS if not (own_data and one.startswith("data"))]
            cfg = compose("search", ["name=bench_step", *defaults, *overrides])
        self.stage = SearchStage(Setup.from_config(cfg))
        self.state, self.searcher, self.runtime = self.stage.state, self.stage.searcher, self.stage.setup.runtime
        self.device = self.runtime.device
        self.tau = self.stage.temperature(0.5)
        self.batches = itertools.chain.from_iterable(
            search_batches(self.stage.weight_loader, self.stage.arch_loader, epoch) for epoch in itertools.count()
        )
        self.state.supernet.train()
        self.steps = itertools.count()
        self.losses = {}  # of the last weight step
        self.draws = True  # whether the sampler draws one operation per choice

    def next_batches(self):
        """Returns the next pair of batches, and the seconds that this took."""
        started = time.perf_counter()
        pair = next(self.batches)
        synchronise(self.device)
        return pair, time.perf_counter() - started

    def record(self):
        """Takes enough steps to record them, if steps are replayed."""
        if self.runtime.cuda_graphs:
            for _ in range(RECORDED):
                self.search_times(self.next_batches()[0])

    def coming(self):
        """Returns the choices of the next weight step and architecture step, without drawing them."""
        arch, generator = self.state.arch, torch.Generator()
        generator.set_state(self.state.generator.get_state())
        sampler = self.stage.sampler
        drawn = [draw(sampler, arch, self.tau, generator).drawn for _ in range(2)]
        if drawn[0] is None:
            self.draws = False
            drawn = [draw(Uniform(), arch, self.tau, generator).drawn for _ in range(2)]
        return [self.named(row) for row in drawn]

    def named(self, drawn):
        """Returns key -> candidate."""
        arch = self.state.arch
        return {key: arch.candidates[key][index] for key, index in zip(arch.keys, drawn.tolist(), strict=True)}

    def floor(self, chosen, memory_format=None):
        network = plain_network(copy.deepcopy(self.state.supernet), chosen)
        if memory_format is not None:
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.ndim == 4:
                    tensor.data = tensor.data.contiguous(memory_format=MEMORY_FORMATS[memory_format])
        group = self.state.weight_optim.param_groups[0]
        settings = {name: group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}
        return Floor(network, self.stage.setup.task, settings, self.runtime.precision)

    def best_format(self):
        """Returns the memory format in which the floor's steps are faster, over several architectures.

        One architecture is not enough: with few convolutions, the format makes no difference.
        """
        (batch, _), _ = self.next_batches()
        clock = CPU if self.device.type == "cpu" else CLOCK
        draws = torch.Generator().manual_seed(0)
        totals = dict.fromkeys(MEMORY_FORMATS, 0.0)
        for _ in range(4):
            drawn = draw(Uniform(), self.state.arch, self.tau, draws).drawn
            for name in totals:
                floor = self.floor(self.named(drawn), name)
                totals[name] += min(self.timed(floor.weight_step, batch)[clock] for _ in range(3))
        return min(totals, key=totals.__getitem__)

    def timed(self, run, *arguments):
        """Returns the seconds by the clock, and those of the process on the CPU."""
        synchronise(self.device)
        started = time.perf_counter(), time.process_time()
        run(*arguments)
        synchronise(self.device)
        return time.perf_counter() - started[0], time.process_time() - started[1]

    def search_times(self, pair):
        """Returns the seconds of the two steps, with everything that the loop over batches does around them."""
        weight_batch, arch_batch = pair
        state = self.state

        others = []

        def weight():
            first, *others[:] = self.searcher.draw_ahead(self.tau)
            result = self.searcher.weight_step(weight_batch, self.tau, first)
            state.weights_meter.add(result)
            self.losses["search"] = result.loss

        def architecture():
            state.arch_meter.add(self.searcher.arch_step(arch_batch, weight_batch, self.tau, 0.5, others))

        with state.guard.at(0, next(self.steps)):
            return self.timed(weight), self.timed(architecture)

    def floor_times(self, pair, floors):
        def weight():
            self.losses["floor"] = floors[0].weight_step(pair[0])

        times = self.timed(weight)
        floors[1].prepare_arch()
        return times, self.timed(floors[1].arch_step, pair[1])

    def check_agreement(self):
        """Raises RuntimeError if floor and search differ in the loss.

        Does nothing if the sampler runs every operation.
        """
        floor, search = float(self.losses["floor"]), float(self.losses["search"])
        if self.draws and abs(floor - search) > 1e-3 * abs(search):
            raise RuntimeError(f"the floor of a weight step has the loss {floor}, the search {search}")


def compare(overrides, pairs, warmup=3):
    """Returns the times of both sides, pair by pair."""
    bench = Bench(overrides)
    memory_format = bench.best_format()
    bench.record()
    rows, waited = [], []
    for number in range(-warmup, pairs):
        pair, seconds = bench.next_batches()
        floors = [bench.floor(chosen, memory_format) for chosen in bench.coming()]
        gc.collect()
        gc.disable()
        if number % 2:
            floor, search = bench.floor_times(pair, floors), bench.search_times(pair)
        else:
            search, floor = bench.search_times(pair), bench.floor_times(pair, floors)
        gc.enable()
        bench.check_agreement()
        if number >= 0:
            rows.append({"floor": floor, "search": search})
            waited.append(seconds / (seconds + sum(step[CLOCK] for step in search)))
    return {
        "memory_format": memory_format,
        "device": bench.runtime.describe(),
        "waiting_for_data": statistics.median(waited),
        "times": {
            name: {
                clock: summarised(*([sum(step[unit] for step in row[side][steps]) for row in rows] for side in SIDES))
                for clock, unit in (("clock", CLOCK), ("cpu", CPU))
            }
            for name, steps in (("weight", slice(1)), ("architecture", slice(1, 2)), ("iteration", slice(2)))
        },
    }


def summarised(floor, search):
    ratios = [ours / theirs for ours, theirs in zip(search, floor, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "floor_ms": 1000 * statistics.median(floor),
        "search_ms": 1000 * statistics.median(search),
        "ratio": middle,
        "quartiles": [low, high],
        "ratios": ratios,
    }
