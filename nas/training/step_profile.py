"""Profiles a few steps: a trace, and a table of the operators that take most of the time."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.autograd.profiler_util import FunctionEventAvg

from nas.storage import atomic

SKIPPED = 2  # the first steps choose algorithms and allocate memory
RECORDED = 3
ROWS = 15


class StepProfile:
    """Records steps of a stage into `directory`: ``steps.pt.trace.json`` and ``operators.txt``.

    Perfetto, chrome://tracing and TensorBoard's profiler plugin read the trace. The table is also printed at the end.

    directory: None records nothing. Use it as a context, and call `step` after each step. It does not change the
    results of a stage by a bit. If a stage has fewer steps than it skips, nothing is recorded.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._profiler: torch.profiler.profile | None = None
        self._table: str | None = None

    def step(self) -> None:
        if self._profiler is not None:
            self._profiler.step()

    def __enter__(self) -> Self:
        if self._directory is not None:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it prints to standard error when it starts
            self._profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=SKIPPED - 1, warmup=1, active=RECORDED, repeat=1),
                on_trace_ready=self._write,
                record_shapes=True,
                acc_events=True,  # torch 2.9 and later warn without it
            )
            self._profiler.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._profiler is not None:
            self._profiler.stop()
        if self._table is not None and error is None:
            print(f"\n{self._table}")

    def _write(self, profiler: torch.profiler.profile) -> None:
        assert self._directory is not None  # without a directory there is no profiler
        trace = self._directory / "steps.pt.trace.json"
        trace.unlink(missing_ok=True)  # perhaps a link that leads elsewhere
        profiler.export_chrome_trace(str(trace))
        events = profiler.key_averages()
        # The steps themselves are events, named ProfilerStep#number. The table has means over the steps.
        steps = sum(event.count for event in events if str(event.key).startswith("ProfilerStep"))
        operators = [event for event in events if not str(event.key).startswith("ProfilerStep")]
        self._table = table(operators, steps=max(1, steps))
        atomic.write_text(self._directory / "operators.txt", self._table + "\n")


def table(operators: list[FunctionEventAvg], *, steps: int) -> str:
    """Returns a table of the operators with the most time of their own, on the GPU if there is one; means per step."""
    on_gpu = any(event.self_device_time_total for event in operators)
    operators = sorted(operators, key=lambda event: own_time(event, on_gpu), reverse=True)[:ROWS]
    width = max(len(str(event.key)) for event in operators)
    lines = [f"{'operator, mean of ' + str(steps) + ' steps':{width}}  {'calls':>7}  {'CPU ms':>8}"]
    lines[0] += f"  {'GPU ms':>8}" * on_gpu
    for event in operators:
        line = f"{event.key:{width}}  {event.count / steps:7.1f}  {event.self_cpu_time_total / 1000 / steps:8.2f}"
        lines.append(line + f"  {event.self_device_time_total / 1000 / steps:8.2f}" * on_gpu)
    return "\n".join(lines)


def own_time(event: FunctionEventAvg, on_gpu: bool) -> float:
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)
