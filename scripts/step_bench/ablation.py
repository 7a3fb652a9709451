"""Measures each optimisation of the step by leaving it out."""

import contextlib
import ctypes
import functools
import gc
import statistics
from unittest import mock

from nas.runtime import allocator
from nas.spaces import planned_cell
from nas.supernet import hard_gate
from step_bench.bench import CLOCK, CPU, Bench


def every_edge(operations, *, inputs, outputs):
    """In place of `nas.spaces.dead_edges.living`: every edge runs."""
    return [(list(range(len(incoming))), True) for incoming in operations]


@contextlib.contextmanager
def memory_returned():
    """The C library returns freed memory to the kernel, as it does by default."""
    mallopt = ctypes.CDLL(None).mallopt
    for threshold in (allocator.TRIM_THRESHOLD, allocator.MMAP_THRESHOLD):
        mallopt(threshold, 128 * 1024)
    try:
        yield
    finally:
        allocator.keep_freed_memory()


@contextlib.contextmanager
def without(*several):
    with contextlib.ExitStack() as stack:
        for context in several:
            stack.enter_context(context())
        yield


START = functools.partial(mock.patch.object, planned_cell, "shared_starts", lambda *_: {})
SUM = functools.partial(mock.patch.object, planned_cell, "owns_output", lambda *_: False)
EDGES = functools.partial(mock.patch.object, planned_cell, "living", every_edge)
NORM = functools.partial(mock.patch.object, hard_gate, "last_norm", lambda _: None)
POOL = functools.partial(mock.patch.object, hard_gate, "HOMOGENEOUS", ())
OPTIMISATIONS = {
    "edges without a part in the output do not run": EDGES,
    "operations share what they begin with": START,
    "sums are formed in place": SUM,
    "a norm takes the gate as its scale, a pooling at its input": functools.partial(without, NORM, POOL),
    "freed memory stays in the process": memory_returned,
    "all of them": functools.partial(without, EDGES, START, SUM, NORM, POOL, memory_returned),
}


def ablate(overrides, pairs, warmup=2):
    """Returns name -> how many times as long an iteration takes without the optimisation, by clock and by CPU time.

    In each round every variant takes the same draws on the same batches, in turns.
    """
    bench = Bench(overrides)
    variants = {"": contextlib.nullcontext, **OPTIMISATIONS}
    ratios = {name: {CLOCK: [], CPU: []} for name in OPTIMISATIONS}
    for number in range(-warmup, pairs):
        batches, _ = bench.next_batches()
        random = bench.state.generator.get_state()
        order = list(variants)
        turn = number % len(order)
        seconds = {}
        for name in order[turn:] + order[:turn]:
            bench.state.generator.set_state(random)
            gc.collect()
            with variants[name]():
                bench.search_times(batches)  # the first step after a change pays for memory that it maps anew
                bench.state.generator.set_state(random)
                seconds[name] = [sum(of) for of in zip(*bench.search_times(batches), strict=True)]
        for name in OPTIMISATIONS if number >= 0 else ():
            for clock in (CLOCK, CPU):
                ratios[name][clock].append(seconds[name][clock] / seconds[""][clock])
    return {
        name: {
            clock: statistics.quantiles(by[unit], n=4, method="inclusive")
            for clock, unit in (("clock", CLOCK), ("cpu", CPU))
        }
        for name, by in ratios.items()
    }


def ablation_table(found):
    lines = ["| without this: times as long | clock | quartiles | CPU time | quartiles |", "|---|---|---|---|---|"]
    for name, row in found.items():
        cells = [f"{row[of][1]:.3f} | {row[of][0]:.3f} to {row[of][2]:.3f}" for of in ("clock", "cpu")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
