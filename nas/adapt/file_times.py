"""Times networks as files: each is exported to ONNX and run by ONNX Runtime on one thread of the CPU."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from nas.data.inputs import Inputs, each
from nas.errors import ConfigError
from nas.formats.export_trained import on_cpu
from nas.formats.format import UnavailableError, variables
from nas.formats.onnx import missing_packages, onnx_file

ROUNDS = 5
SECONDS = 0.3  # of a round for each network
LEAST, MOST = 10, 1000  # runs of a round


class FileTimes:
    """Gives the times of exported networks, see `nas.methods.timed_limit.FileTimes`. Raises ConfigError if the packages
    of the extra ``onnx`` are missing."""

    def __init__(self) -> None:
        if missing := missing_packages():
            raise ConfigError(
                f"cap.latency_ms needs {', '.join(missing)}, which is not installed",
                fix="pip install 'gumbel-nas[onnx]', or set cap.macs instead",
            )

    def __call__(self, networks: Sequence[nn.Module], inputs: Inputs) -> list[list[float]]:
        runs = [self._session(network, inputs) for network in networks]
        for run in runs:  # to warm up
            timed(run)
        slowest = max(statistics.median(timed(run) for _ in range(LEAST)) for run in runs)
        count = min(MOST, max(LEAST, round(SECONDS * 1000 / slowest)))
        rounds = []
        for _ in range(ROUNDS):
            measured: list[list[float]] = [[] for _ in runs]
            for _ in range(count):
                for run, times in zip(runs, measured, strict=True):
                    times.append(timed(run))
            rounds.append([statistics.median(times) for times in measured])
        return rounds

    def _session(self, network: nn.Module, inputs: Inputs) -> Callable[[], Any]:
        import onnxruntime

        examples = each(inputs)
        names = variables(len(examples))
        try:
            content = onnx_file(on_cpu(network), tuple(one.repeat_interleave(2, 0) for one in examples), names)
        except UnavailableError as error:
            raise ConfigError(
                f"cap.latency_ms times networks as ONNX files, and {error}", fix="set cap.macs instead"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its warnings are about the exporter
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        given = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), examples, strict=True)}
        return lambda: session.run(None, given)


def timed(run: Callable[[], Any]) -> float:
    """The milliseconds of a call."""
    started = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started)
