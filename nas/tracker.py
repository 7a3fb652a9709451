"""Where the metrics of a run go: always ``metrics.jsonl``, by default TensorBoard as well."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from nas import atomic, regular_file
from nas.errors import OutputError

Line = dict[str, Any]
STAGES = ("search", "retrain")
SIZE_LIMIT = 50_000_000  # bytes of metrics.jsonl; a thousand epochs take about two million


class JsonLines:
    """Appends one line an epoch to ``metrics.jsonl``: {"stage": ..., "epoch": ..., <metric>: <value>, ...}."""

    def __init__(self, *, directory: Path) -> None:
        self._path = directory / "metrics.jsonl"
        self._lines = read_lines(self._path)
        self._write_anew()  # without a line that a crash has cut
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
    steps that a second file repeats would be shown twice.
    """

    def __init__(self, *, directory: Path) -> None:
        super().__init__(directory=directory)
        self._directory = directory
        self._start()

    def _start(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import, and not everybody's choice

        for old in self._directory.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(log_dir=str(self._directory))
        for line in self._lines:
            self._draw(line)
        self._writer.flush()

    def _draw(self, line: Line) -> None:
        for name, value in line.items():
            if name not in ("stage", "epoch"):
                self._writer.add_scalar(f"{line['stage']}/{name}", math.nan if value is None else value, line["epoch"])

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        super().log(stage, epoch, metrics)
        self._draw({"stage": stage, "epoch": epoch, **metrics})
        self._writer.flush()

    def _replace(self, lines: list[Line]) -> None:
        super()._replace(lines)
        self._writer.close()
        self._start()

    def close(self) -> None:
        self._writer.close()
        super().close()


def read_lines(path: Path) -> list[Line]:
    """What was logged, but for a last line that a crash has cut, and whatever is no such line and comes after it;
    nothing if there is no file."""
    try:
        content = regular_file.read(path, limit=SIZE_LIMIT)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(
            f"the metrics in {path} cannot be read ({error.strerror})", fix="remove it: it is written anew"
        ) from error
    lines: list[Line] = []
    for text in content.decode(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not is_line(line):
            break
        lines.append(line)
    return lines


def is_line(line: Any) -> bool:
    if not isinstance(line, dict) or line.get("stage") not in STAGES or type(line.get("epoch")) is not int:
        return False
    values = [value for name, value in line.items() if name != "stage"]
    return 0 <= line["epoch"] < 2**31 and all(value is None or is_number(value) for value in values)


def is_number(value: Any) -> bool:
    """Of those that JSON and an event file can hold."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
