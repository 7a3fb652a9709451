"""Times networks as files: each is exported to ONNX and run by ONNX Runtime on one thread of the CPU."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nas.data.inputs import Inputs, each
from nas.errors import ConfigError
from nas.formats.export_trained import on_cpu
from nas.formats.format import UnavailableError, variables
from nas.formats.onnx import missing_packages, onnx_file

ROUNDS = 5
SECONDS = 0.3  # of a round, for each network
LEAST, MOST = 10, 300  # runs of a round


class FileTimes:
    """Gives the times of exported networks, see `nas.methods.timed_limit.FileTimes`. Raises ConfigError if the packages
    of the extra ``onnx`` are missing."""

    def __init__(self) -> None:
        if missing := missing_packages():
            raise ConfigError(
                f"cap.latency_ms needs {', '.join(missing)}, which is not installed",
                fix="pip install 'gumbel-nas[onnx]', or set cap.macs instead",
            )

    def in_turns(self, networks: Sequence[nn.Module], inputs: Inputs) -> list[list[float]]:
        examples = tuple(one.repeat_interleave(2, 0) for one in each(inputs))  # two, see `exported`
        names = variables(len(examples))
        return in_turns([session(self._file(on_cpu(network), examples, names), inputs) for network in networks])

    def of_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        bound = Bound(module, args, kwargs).eval()
        examples = tuple(one for one in args if isinstance(one, Tensor))
        run = session(self._file(bound, examples, variables(len(examples)), any_batch=False), examples)
        ((milliseconds,),) = in_turns([run], rounds=1)
        return milliseconds

    def _file(self, *arguments: Any, **options: Any) -> bytes:
        try:
            return onnx_file(*arguments, **options)
        except UnavailableError as error:
            raise ConfigError(
                f"cap.latency_ms times networks and candidates as ONNX files, and {error}", fix="set cap.macs instead"
            ) from error


class Bound(nn.Module):
    """A module with its arguments. forward takes those that are tensors given by position."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.module, self.given, self.named = module, args, dict(kwargs)

    def forward(self, *tensors: Tensor) -> Any:
        rest = iter(tensors)
        return self.module(*(next(rest) if isinstance(one, Tensor) else one for one in self.given), **self.named)


def session(content: bytes, inputs: Inputs) -> Callable[[], Any]:
    """What runs the content of an ONNX file on one thread of the CPU. inputs: on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings are about the exporter
    made = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    given = {one.name: tensor.numpy() for one, tensor in zip(made.get_inputs(), each(inputs), strict=True)}
    return lambda: made.run(None, given)


def in_turns(runs: Sequence[Callable[[], Any]], *, rounds: int = ROUNDS) -> list[list[float]]:
    """(rounds, runs): the median milliseconds of each run in each round. The runs take turns, call by call."""
    for run in runs:  # to warm up
        timed(run)
    slowest = max(statistics.median(timed(run) for _ in range(LEAST)) for run in runs)
    count = min(MOST, max(LEAST, round(SECONDS * 1000 / slowest)))
    found = []
    for _ in range(rounds):
        measured: list[list[float]] = [[] for _ in runs]
        for _ in range(count):
            for run, times in zip(runs, measured, strict=True):
                times.append(timed(run))
        found.append([statistics.median(times) for times in measured])
    return found


def timed(run: Callable[[], Any]) -> float:
    """The milliseconds that this thread works in a call. The time of other programs on the core is left out."""
    started = time.thread_time()
    run()
    return 1000 * (time.thread_time() - started)
