"""Measures the peak memory of a search and of its floor, each in its own process."""

import copy
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from nas.runtime.runtime import peak_memory
from nas.supernet.choice import choices
from step_bench.bench import Bench
from step_bench.floor import Floor, plain_network

COMMAND = Path(__file__).parents[1] / "bench_step"  # with --child it is one of the processes
MIB = 2**20


def status(field):
    """Returns a field of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def child(side, overrides, steps, exchange):
    """Runs the steps of one side in this process and returns its memory in bytes.

    On Linux with a CPU, only the peak of the steps counts, not what came before them. The search writes the drawn
    architectures to `exchange`, and the floor reads them.
    """
    bench = Bench(overrides)
    measures_start = bench.device.type == "cpu" and sys.platform == "linux"
    start = 0
    if measures_start:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        start = status("VmRSS")

    def peak():
        return status("VmHWM") if measures_start else peak_memory(bench.device)

    if side == "search":
        drawn = []
        for _ in range(steps):
            pair, _ = bench.next_batches()
            drawn.append(bench.coming())
            bench.search_times(pair)
        exchange.write_text(json.dumps(drawn))
        undrawn = max(undrawn_bytes(bench, one) for architectures in drawn for one in architectures)
        return {"peak": peak(), "start": start, "undrawn": undrawn}
    supernet = bench.state.supernet.cpu()
    # The process of the floor must not hold the operations that are not drawn.
    spaced = copy.deepcopy(supernet) if bench.device.type == "cuda" else supernet
    del bench.state.supernet, bench.searcher
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    group = bench.state.weight_optim.param_groups[0]
    settings = {name: group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}
    task, precision = bench.stage.setup.task, bench.runtime.precision
    for architectures in json.loads(exchange.read_text()):
        pair, _ = bench.next_batches()
        for position, chosen in enumerate(architectures):
            network = plain_network(copy.deepcopy(spaced), chosen).to(bench.device)
            floor = Floor(network, task, settings, precision)
            if position == 0:
                floor.weight_step(pair[0])
            else:
                floor.prepare_arch()
                floor.arch_step(pair[1])
            del network, floor
    return {"peak": peak(), "start": start}


def undrawn_bytes(bench, chosen):
    """Returns the bytes of the weights that an architecture leaves out, times three for gradients and momentum."""
    left_out = 0
    for key, sharing in choices(bench.state.supernet).items():
        for choice in sharing:
            for name, candidate in zip(choice.names, choice.candidates, strict=True):
                if name != chosen[key]:
                    left_out += sum(p.numel() * p.element_size() for p in candidate.parameters())
    return 3 * left_out


def in_child(side, overrides, steps, exchange):
    command = [sys.executable, str(COMMAND), *overrides, "--child", side, "--pairs", str(steps), "--out", str(exchange)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    if done.returncode:
        raise RuntimeError(f"the process of the {side} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def memory(overrides, steps):
    with tempfile.TemporaryDirectory() as directory:
        exchange = Path(directory) / "drawn.json"
        search = in_child("search", overrides, steps, exchange)
        floor = in_child("floor", overrides, steps, exchange)
    return {
        "search_mib": search["peak"] / MIB,
        "floor_mib": floor["peak"] / MIB,
        "undrawn_mib": search["undrawn"] / MIB,
        "ratio": (search["peak"] - search["undrawn"]) / floor["peak"],
        "search_above_start_mib": (search["peak"] - search["start"]) / MIB,
        "floor_above_start_mib": (floor["peak"] - floor["start"]) / MIB,
    }
