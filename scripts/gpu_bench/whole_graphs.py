#!/usr/bin/env python3
"""The floor of a step on a GPU: the drawn network's two steps, each recorded as one CUDA graph.

    PYTHONPATH=.:scripts python scripts/gpu_bench/whole_graphs.py space=nas_bench_201 --draws 8 --out floor.json

Prints the milliseconds of a weight step, an architecture step and both, medians over the draws. Without a GPU the steps
run as they are.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from nas.runtime.runtime import synchronise
from step_bench.bench import Bench


def recorded(step, device):
    """What does `step` again. It has run before."""
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def milliseconds(step, device, times):
    seconds = []
    for _ in range(times):
        synchronise(device)
        started = time.perf_counter()
        step()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def measured(overrides, draws, times):
    # As for a search that is replayed, cuDNN tries no plans: that takes a minute in the DARTS space.
    bench = Bench([*overrides, "runtime.cuda_graphs=true"])
    rows = []
    for _ in range(draws):
        pair, _ = bench.next_batches()
        floors = [bench.floor(chosen) for chosen in bench.coming()]
        floors[1].prepare_arch()
        steps = [lambda: floors[0].weight_step(pair[0]), lambda: floors[1].arch_step(pair[1])]  # noqa: B023, run here
        rows.append([milliseconds(recorded(step, bench.device), bench.device, times) for step in steps])
        bench.searcher.draw_ahead(bench.tau)  # so that others come next
    weight, architecture = (statistics.median(column) for column in zip(*rows, strict=True))
    both = statistics.median(map(sum, rows))
    return {
        "overrides": overrides,
        "device": bench.runtime.describe(),
        "graphs": bench.device.type == "cuda",
        "milliseconds": {"weight": weight, "architecture": architecture, "iteration": both},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="as for nas-search")
    parser.add_argument("--draws", type=int, default=8, help="architectures")
    parser.add_argument("--times", type=int, default=20, help="steps of each")
    parser.add_argument("--out", type=Path, help="a JSON to write")
    arguments = parser.parse_intermixed_args()
    found = measured(arguments.overrides, arguments.draws, arguments.times)
    print(json.dumps(found, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
