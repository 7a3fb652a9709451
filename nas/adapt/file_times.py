"""Times networks as files: each is exported to ONNX and run by ONNX Runtime on one thread of the CPU."""

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from nas.data.inputs import Inputs, each
from nas.errors import CheckpointError, ConfigError, described
from nas.formats.export_trained import on_cpu
from nas.formats.format import UnavailableError, variables
from nas.formats.onnx import missing_packages, onnx_file
from nas.storage import checkpoint_file

ROUNDS = 5
SECONDS = 0.3  # of a round, for each network
LEAST, MOST = 10, 300  # runs of a round


class FileTimes:
    """Gives the times of exported networks: a `nas.methods.timed_limit.FileClock`. Raises ConfigError if the packages
    of the extra ``onnx`` are missing.

    resumed: the directory of a run that is resumed, whose checkpoint has its times.
    """

    def __init__(self, *, resumed: Path | None = None) -> None:
        if missing := missing_packages():
            raise ConfigError(
                f"cap.latency_ms needs {', '.join(missing)}, which is not installed",
                fix="pip install 'gumbel-nas[onnx]', or set cap.macs instead",
            )
        self.known = saved_times(resumed)

    def in_turns(self, networks: Sequence[nn.Module], inputs: Inputs) -> list[list[float]]:
        examples = tuple(one.repeat_interleave(2, 0) for one in each(inputs))  # two, see `exported`
        names = variables(len(examples))
        return in_turns([session(self._file(on_cpu(network), examples, names), inputs) for network in networks])

    def of_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        bound = Bound(module, args, kwargs).eval()
        examples = bound.tensors
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


def saved_times(resumed: Path | None) -> Mapping[str, Any] | None:
    """Returns the times in the checkpoint of a search; None if it cannot be read, which the search reports later."""
    if resumed is None:
        return None
    with contextlib.suppress(CheckpointError):
        state, _ = checkpoint_file.newest(resumed / "search" / "checkpoint.pt", "search")
        return None if state is None else state.get("timed")
    return None


class Bound(nn.Module):
    """A module with its arguments. forward takes the tensors among them, in nested lists and by name too."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self._given, self._form = tree_flatten((args, dict(kwargs)))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(one for one in self._given if isinstance(one, Tensor))

    def forward(self, *tensors: Tensor) -> Any:
        rest = iter(tensors)
        given = [next(rest) if isinstance(one, Tensor) else one for one in self._given]
        args, kwargs = tree_unflatten(given, self._form)
        return self.module(*args, **kwargs)


def session(content: bytes, inputs: Inputs) -> Callable[[], Any]:
    """Returns a function that runs an ONNX file on one thread of the CPU. inputs: on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings are about the exporter
    try:
        made = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        given = {one.name: tensor.numpy() for one, tensor in zip(made.get_inputs(), each(inputs), strict=True)}
        made.run(None, given)
    except Exception as error:  # ONNX Runtime has errors of its own, e.g. for types that it has no kernels for
        raise ConfigError(
            f"cap.latency_ms times files in ONNX Runtime, which cannot run this one ({described(error)})",
            fix="set cap.macs instead, or leave out candidates that ONNX Runtime cannot run",
        ) from error
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
