"""Measures how the time and memory of a step grow with the size of a search."""

import itertools
import statistics
import sys
import tempfile
from pathlib import Path

from step_bench.bench import CLOCK, Bench
from step_bench.memory import MIB, in_child

CURVES = {
    "candidates": (2, 4, 8, 16, 32),
    "cells": (1, 2, 4),
    "batch": (16, 32, 64),
    "image size": (16, 32, 48),
}


def growth(overrides, pairs, curves):
    """Returns sampler -> curve -> size -> milliseconds of an iteration and peak memory."""
    found = {}
    for sampler, (curve, sizes) in itertools.product(("gdas", "softmax"), curves.items()):
        settings = {size: [*overrides, f"sampler={sampler}", *sized(curve, size)] for size in sizes}
        benches = {size: Bench(of) for size, of in settings.items()}
        times = {size: [] for size in sizes}
        for number in range(-2, pairs):
            for size, bench in benches.items():
                seconds = sum(step[CLOCK] for step in bench.search_times(bench.next_batches()[0]))
                if number >= 0:
                    times[size].append(1000 * seconds)
        del benches
        for size in sizes:
            with tempfile.TemporaryDirectory() as directory:
                peak = in_child("search", settings[size], 4, Path(directory) / "drawn.json")["peak"]
            quartiles = statistics.quantiles(times[size], n=4, method="inclusive")
            found.setdefault(sampler, {}).setdefault(curve, {})[size] = {
                "milliseconds": quartiles[1],
                "quartiles": quartiles[::2],
                "peak_mib": peak / MIB,
            }
            print(f"{sampler}, {curve} {size}: {quartiles[1]:.0f} ms, {peak / MIB:.0f} MiB", file=sys.stderr)
    return found


def sized(curve, size):
    """Returns the overrides of one point of a curve: a small NAS-Bench-201 network.

    All its candidates cost the same, so that the drawn architecture does not matter.
    """
    point = {"candidates": 4, "cells": 1, "batch": 32, "image size": 32, curve: size}
    ops = ", ".join(
        f"conv{index}: {{_target_: nas.spaces.ReLUConvBN, _partial_: true, kernel_size: 3}}"
        for index in range(point["candidates"])
    )
    return [
        "~ops",
        f"+ops={{{ops}}}",
        "space=nas_bench_201",
        f"space.cells={point['cells']}",
        f"search.batch_size={point['batch']}",
        f"data.size={point['image size']}",
    ]


def growth_table(found):
    lines = []
    for curve in found["gdas"]:
        sizes = list(found["gdas"][curve])
        lines += [f"| {curve} | " + " | ".join(map(str, sizes)) + " |", "|---" * (len(sizes) + 1) + "|"]
        for sampler, unit, key in itertools.product(found, ("ms", "MiB"), ("milliseconds", "peak_mib")):
            if (unit == "ms") == (key == "milliseconds"):
                row = found[sampler][curve]
                lines.append(f"| {sampler}, {unit} | " + " | ".join(f"{row[size][key]:.0f}" for size in sizes) + " |")
        lines.append("")
    return "\n".join(lines)
