"""Measures, writes and reads latency tables, which hold the time of each candidate on a device."""

import contextlib
import functools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.inputs import Inputs, each
from nas.errors import ConfigError
from nas.methods.cost import Cost
from nas.runtime.modes import evaluation_mode
from nas.storage import atomic
from nas.supernet.choice import Choice, Gate, choices, gates
from nas.supernet.every_candidate import Condition, Part, keys_of, run_every_candidate
from nas.supernet.unregistered import OF_TORCH
from nas.untrusted import plain_data, regular_file

FORMAT = "nas-latency"
VERSION = 1
SIZE_LIMIT = 20_000_000  # bytes; a table of the DARTS space takes about a hundred thousand

Shapes = tuple[tuple[int, ...], ...]
Use = tuple[str, Shapes]  # a choice key, and the shapes of the choice's input tensors


def shapes_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Shapes:
    """The shapes of the tensors among the arguments, including the batch size."""
    return tuple(tuple(value.shape) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of a forward pass in eval mode.

    candidates: (choice key, input shapes) -> candidate -> its own time, without the time of choices inside it.
    fixed: the time of everything outside of the choices. batch: examples per pass. device: the name of the device.
    """

    device: str
    batch: int
    fixed: float
    candidates: Mapping[Use, Mapping[str, float]]

    def cost(self, model: nn.Module, inputs: Inputs) -> Cost:
        """The latency cost of a model with choices.

        inputs: `batch` examples, on the model's device, which may be the meta device.
        Raises ConfigError if the model uses a candidate at shapes that the table does not have.
        """
        terms: dict[Condition, float] = {frozenset(): self.fixed}

        def observe(part: Part, run: Callable[[], Any]) -> Any:
            if part.key is not None and part.name is not None:
                shapes = shapes_of(part.args, part.kwargs)
                measured = self.candidates.get((part.key, shapes), {})
                if part.name not in measured:
                    raise ConfigError(
                        f"the latency table has no {part.name} at {part.key} for inputs {list(map(list, shapes))}, "
                        "expected every candidate of the network that is retrained",
                        fix="measure a table with scripts/measure_latency and the same space, data and retrain.network",
                    )
                terms[part.condition] = terms.get(part.condition, 0.0) + measured[part.name]
            return run()

        run_every_candidate(model, inputs, observe)
        return Cost(terms)

    def save(self, path: Path) -> None:
        entries = [
            {"key": key, "inputs": [list(shape) for shape in shapes], "milliseconds": dict(measured)}
            for (key, shapes), measured in self.candidates.items()
        ]
        raw = {"format": FORMAT, "version": VERSION, "device": self.device, "batch": self.batch, "fixed": self.fixed}
        atomic.write_json(path, {**raw, "candidates": entries})

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Raises ConfigError if the file is missing, or if `save` could not have written the file."""
        fix = "set regulariser.latency.table to a file that scripts/measure_latency has written"
        try:
            raw = plain_data.from_json(regular_file.read(path, limit=SIZE_LIMIT))
        except FileNotFoundError as error:
            raise ConfigError(f"there is no latency table at {path}", fix=fix) from error
        except OSError as error:
            raise ConfigError(f"the latency table {path} cannot be read ({error.strerror})", fix=fix) from error
        except ValueError as error:
            raise ConfigError(f"the latency table {path} is not JSON ({type(error).__name__})", fix=fix) from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT or raw.get("version") != VERSION:
            raise ConfigError(f"{path} is not a latency table of version {VERSION}", fix=fix)
        try:
            return cls(
                device=str(raw["device"]),
                batch=_at_least_one(raw["batch"]),
                fixed=_milliseconds(raw["fixed"]),
                candidates={
                    (str(entry["key"]), tuple(tuple(map(_at_least_one, shape)) for shape in entry["inputs"])): {
                        str(name): _milliseconds(value) for name, value in entry["milliseconds"].items()
                    }
                    for entry in raw["candidates"]
                },
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"the latency table {path} is malformed: {reason}", fix=fix) from error


def _milliseconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"expected milliseconds, a number >= 0, got {value!r}")
    return float(value)


def _at_least_one(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected a size, an integer >= 1, got {value!r}")
    return value


@torch.no_grad()
def measure(
    model: nn.Module, inputs: Inputs, *, device: str, clock: Callable[[Callable[[], Any]], float]
) -> LatencyTable:
    """Times each candidate at each distinct pair of choice key and input shapes, and the model outside of the choices.

    inputs: a batch, on the model's device. clock: returns the milliseconds of a call, e.g. `median_time`.

    The model, and a candidate that contains choices, are timed with the first candidates of these choices. The times of
    the first candidates are then subtracted; a negative result becomes 0. Where candidates of one name, key and input
    shapes differ, as by their strides or widths, each is timed, and the table holds the mean over their places. So the
    sum over the places is right.
    """
    found = choices(model)
    names = {key: sharing[0].names for key, sharing in found.items()}
    parts: dict[tuple[Use | None, str | None, str], list[Part]] = {}

    def observe(part: Part, run: Callable[[], Any]) -> Any:
        output = run()
        # Recorded after the run, so that the parts inside this part come first.
        use = None if part.key is None else (part.key, shapes_of(part.args, part.kwargs))
        parts.setdefault((use, part.name, f"{attributes(part.module)} {shapes_of((output,), {})}"), []).append(part)
        return output

    run_every_candidate(model, inputs, observe)
    key_of = keys_of(model)
    own: dict[tuple[Use | None, str | None], float] = {}
    of_place: dict[tuple[Choice | None, Shapes, str | None], float] = {}
    counts: Counter[tuple[Use | None, str | None]] = Counter()
    with evaluation_mode(model):
        for (use, name, _), alike in parts.items():
            part, place = alike[0], (use, name)
            drawn = {key: names[key][0] for key in found} | dict(part.condition)
            with gates(found, {key: Gate(None, names[key].index(name)) for key, name in drawn.items()}):
                inside = uses_inside(part)
                nested = sum(of_place[choice, shapes, drawn[key_of[choice]]] for choice, shapes in inside)
                taken = max(0.0, clock(functools.partial(part.module, *part.args, **part.kwargs)) - nested)
            of_place |= {(one.choice, shapes_of(one.args, one.kwargs), name): taken for one in alike}
            counts[place] += len(alike)
            own[place] = own.get(place, taken) + (taken - own.get(place, taken)) * len(alike) / counts[place]
    candidates: dict[Use, dict[str, float]] = {}
    for (use, name), milliseconds in own.items():
        if use is not None and name is not None:
            candidates.setdefault(use, {})[name] = milliseconds
    return LatencyTable(device, len(each(inputs)[0]), own[None, None], candidates)


def attributes(module: Any) -> str:
    """The parts of a module with their types, sizes and plain attributes: equal for modules that take as long.

    The print of a module would not do, as it need not name every attribute.
    """
    parts = []
    for path, part in module.named_modules(remove_duplicate=False):
        tensors = [*part._parameters.items(), *part._buffers.items()]
        sizes = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors if tensor is not None]
        plain = [(name, value) for name, value in vars(part).items() if name not in OF_TORCH]
        parts.append((path, type(part), sizes, plain))
    return repr(parts)


def uses_inside(part: Part) -> list[tuple[Choice, Shapes]]:
    """The choices that run when the part runs under the current gates, each with its input shapes."""
    uses: list[tuple[Choice, Shapes]] = []

    def note(choice: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(choice, Choice)
        uses.append((choice, shapes_of(args, kwargs)))

    reachable = [module for module in part.module.modules() if isinstance(module, Choice)]
    with contextlib.ExitStack() as hooks:
        for choice in reachable:
            hooks.enter_context(choice.register_forward_pre_hook(note, with_kwargs=True))
        part.module(*part.args, **part.kwargs)
    return uses


def median_time(run: Callable[[], Any], *, device: torch.device, warmup: int = 10, repeats: int = 50) -> float:
    """The median time in milliseconds over `repeats` calls, after `warmup` calls. Waits for the device in each call."""

    def waited() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    for _ in range(warmup):
        waited()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        waited()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
