"""Measures how long a network takes for a batch."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from nas.data.inputs import Inputs, each
from nas.runtime.runtime import synchronise

LEAST_RUNS = 10
MOST_RUNS = 1000


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a forward pass. runs: how many passes were measured."""

    batch: int
    median_ms: float
    p95_ms: float
    runs: int


@torch.no_grad()
def latency(network: nn.Module, inputs: Inputs, *, batch: int, seconds: float) -> Latency:
    """Measures forward passes in eval mode, of `batch` examples that are on the device already.

    inputs: one or more examples, repeated in turn to fill the batch. seconds: how long to measure, for 10 to 1000
    passes. A warm-up of a fifth of this time comes first.
    """
    network.eval()
    examples = tuple(tensor[torch.arange(batch, device=tensor.device) % len(tensor)] for tensor in each(inputs))
    device = examples[0].device

    def run() -> float:
        started = time.perf_counter()
        network(*examples)
        synchronise(device)
        return time.perf_counter() - started

    # The first passes choose algorithms and allocate memory.
    timed(run, seconds / 5)
    measured = timed(run, seconds)
    # Inclusive: the quantile of the measured passes themselves, not of a population that they are drawn from.
    p95 = statistics.quantiles(measured, n=20, method="inclusive")[-1]
    return Latency(batch, 1000 * statistics.median(measured), 1000 * p95, len(measured))


def timed(run: Callable[[], float], seconds: float) -> list[float]:
    """Calls `run` again and again for `seconds`. Returns what it returned."""
    started, measured = time.perf_counter(), [run()]
    while len(measured) < LEAST_RUNS or (time.perf_counter() - started < seconds and len(measured) < MOST_RUNS):
        measured.append(run())
    return measured
