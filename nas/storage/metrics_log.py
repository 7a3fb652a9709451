"""Where the metrics of a run go: always ``metrics.jsonl``, by default TensorBoard as well."""

import json
import math
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from nas.errors import OutputError
from nas.storage import atomic
from nas.untrusted import regular_file

Line = dict[str, Any]
STAGES = ("search", "retrain")
SIZE_LIMIT = 50_000_000  # bytes of metrics.jsonl; a thousand epochs take about two million

OURS = ".nas"  # how the names of our event files end: others' are left alone
RECORD_LIMIT = 10_000_000  # bytes of an event; one of ours takes a hundred


class JsonLines:
    """Appends one line an epoch to ``metrics.jsonl``: {"stage": ..., "epoch": ..., <metric>: <value>, ...}."""

    def __init__(self, *, directory: Path) -> None:
        self._path = directory / "metrics.jsonl"
        self._lines, whole = read_lines(self._path)
        if not whole:
            self._write_anew()
        self._stream = self._opened()

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """stage: ``search`` or ``retrain``; epoch: from 0."""
        # JSON has no NaN and no infinity.
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._lines.append({"stage": stage, "epoch": epoch, **finite})
        self._stream.write(json.dumps(self._lines[-1]) + "\n")
        self._stream.flush()

    def resume(self, stage: str, epochs: int, metrics: Mapping[str, float]) -> None:
        """Bring what was logged of a stage to where its checkpoint is: `epochs` epochs done, and the metrics of the
        last of them, which a crash may have kept from being logged."""
        kept = [line for line in self._lines if line["stage"] != stage or line["epoch"] < epochs]
        complete = any(line["stage"] == stage and line["epoch"] == epochs - 1 for line in kept)
        if len(kept) < len(self._lines):
            self._replace(kept)
        if epochs and not complete:
            self.log(stage, epochs - 1, metrics)

    def _replace(self, lines: list[Line]) -> None:
        self._stream.close()
        self._lines = lines
        self._write_anew()
        self._stream = self._opened()

    def _write_anew(self) -> None:
        atomic.write_text(self._path, "".join(json.dumps(line) + "\n" for line in self._lines))

    def _opened(self) -> TextIO:
        # Not through a link that somebody has put there since it was written.
        return open(self._path, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW))

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Silent(JsonLines):
    """Logs nothing: of processes that write nothing."""

    def __init__(self) -> None:
        pass

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        pass

    def resume(self, stage: str, epochs: int, metrics: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard(JsonLines):
    """The same as curves named ``<stage>/<metric>`` over the epochs, in an event file in the run's directory.

    Of a run that is resumed the file is written anew from ``metrics.jsonl``: events cannot be taken out of one, and the
    steps that a second file repeats would be shown twice. The times of day of what the old file had are kept.
    """

    def __init__(self, *, directory: Path) -> None:
        super().__init__(directory=directory)
        self._directory = directory
        self._start()

    def _start(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import, and not everybody's choice

        before = list(self._directory.glob(f"events.out.tfevents.*{OURS}"))
        times = {known: time for old in before if old.is_file() for known, time in wall_times(old)}
        self._writer = SummaryWriter(log_dir=str(self._directory), filename_suffix=OURS)
        for line in self._lines:
            self._draw(line, time=times.get((line["stage"], line["epoch"])))
        self._writer.flush()
        for old in before:
            old.unlink()

    def _draw(self, line: Line, *, time: float | None = None) -> None:
        """time: of day, in seconds since 1970; None for now."""
        for name, value in line.items():
            if name not in ("stage", "epoch"):
                number = math.nan if value is None else value
                self._writer.add_scalar(f"{line['stage']}/{name}", number, line["epoch"], walltime=time)

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        super().log(stage, epoch, metrics)
        self._draw({"stage": stage, "epoch": epoch, **metrics})
        self._writer.flush()

    def _replace(self, lines: list[Line]) -> None:
        super()._replace(lines)
        self._writer.close()  # first, so that all is in the file whose times are read
        self._start()

    def close(self) -> None:
        self._writer.close()
        super().close()


def read_lines(path: Path) -> tuple[list[Line], bool]:
    """What was logged, nothing if there is no file; and whether that is all that the file holds.

    A last line that a crash has cut is left out, and so is any other that is damaged, which is named on standard error.
    Raises OutputError for a file that cannot be read.
    """
    try:
        content = regular_file.read(path, limit=SIZE_LIMIT)
    except FileNotFoundError:
        return [], True
    except OSError as error:
        raise OutputError(
            f"the metrics in {path} cannot be read ({error.strerror})", fix="remove it: it is written anew"
        ) from error
    *complete, cut = content.decode("utf-8", errors="replace").split("\n")
    read = [parsed(text) for text in complete]
    damaged = [str(number) for number, line in enumerate(read, start=1) if line is None]
    if damaged:
        which = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines ({', '.join(damaged[:5])}) are"
        print(f"warning: {path}: {which} damaged and left out, the others are kept", file=sys.stderr)
    return [line for line in read if line is not None], not damaged and not cut


def parsed(text: str) -> Line | None:
    """None for what is no line of metrics."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if is_line(line) else None


def wall_times(path: Path) -> Iterator[tuple[tuple[str, int], float]]:
    """((stage, epoch), time of day) of the events in a file, as far as it is whole.

    A record is its length (uint64), a checksum (uint32), an Event of TensorBoard's protocol, a checksum.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    with regular_file.opened(path) as stream:
        while len(head := stream.read(12)) == 12 and (length := struct.unpack("<Q", head[:8])[0]) <= RECORD_LIMIT:
            try:
                event = Event.FromString(stream.read(length))
            except DecodeError:
                return
            stream.read(4)
            for value in event.summary.value:
                yield (value.tag.partition("/")[0], event.step), event.wall_time


def is_line(line: Any) -> bool:
    if not isinstance(line, dict) or line.get("stage") not in STAGES or type(line.get("epoch")) is not int:
        return False
    values = [value for name, value in line.items() if name != "stage"]
    return 0 <= line["epoch"] < 2**31 and all(value is None or is_number(value) for value in values)


def is_number(value: Any) -> bool:
    """Of those that JSON and an event file can hold."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
