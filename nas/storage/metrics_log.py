"""Logs the metrics of a run to ``metrics.jsonl``, and what is derived to ``derived.jsonl``."""

import errno
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from nas.errors import OutputError
from nas.storage import atomic
from nas.untrusted import regular_file

Line = dict[str, Any]
STAGES = ("search", "retrain")
SIZE_LIMIT = 200_000_000  # bytes of a file; a thousand epochs take 2 million, of 2,000 candidates 110 million
LINES = 100_000  # of it, one an epoch
LINE_LIMIT = 2_000_000  # bytes of one; the probabilities of 20,000 candidates take 900,000
DERIVED = "derived.jsonl"


class JsonLines:
    """Appends one line per epoch to ``metrics.jsonl``: {"stage": ..., "epoch": ..., <metric>: <value>, ...}.

    Also appends a line to ``derived.jsonl`` after every epoch that changes what is derived: {"epoch": ..., "choices":
    ...}.
    """

    def __init__(self, *, directory: Path) -> None:
        self._path = directory / "metrics.jsonl"
        self._derivations = Derivations(directory / DERIVED)
        self._lines, whole = read_lines(self._path)
        if not whole:
            self._write_anew()
        self._stream = self._opened()

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of one epoch. stage: ``search`` or ``retrain``. epoch: from 0."""
        # JSON has no NaN and no infinity.
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._lines.append({"stage": stage, "epoch": epoch, **finite})
        self._stream.write(json.dumps(self._lines[-1]) + "\n")
        self._stream.flush()
        if stage == "search":
            self._derivations.write(epoch)

    def resume(self, stage: str, epochs: int, metrics: Mapping[str, float]) -> None:
        """Cuts the log of a stage back to its checkpoint, which has `epochs` finished epochs.

        metrics: of the last of these epochs. They are logged if a crash prevented that.
        """
        kept = [line for line in self._lines if line["stage"] != stage or line["epoch"] < epochs]
        complete = any(line["stage"] == stage and line["epoch"] == epochs - 1 for line in kept)
        if len(kept) < len(self._lines):
            self._replace(kept)
        if stage == "search":
            self._derivations.resume(epochs)
        if epochs and not complete:
            self.log(stage, epochs - 1, metrics)

    def derived(self, choices: Mapping[str, str | None]) -> None:
        """Takes the choices that were derived after the epoch that is logged next."""
        self._derivations.next = dict(choices)

    def describe(self, *, texts: Mapping[str, str], settings: Mapping[str, Any], scores: Sequence[str]) -> None:
        """Takes a description of the run, once, when it begins. Only TensorBoard writes it.

        texts: title -> text. settings: for comparing runs. scores: tags of the cards by which runs are ranked.
        """

    def finish(self, scores: Mapping[str, float], *, texts: Mapping[str, str]) -> None:
        """Takes the final scores and texts, once, when a run ends.

        Only TensorBoard writes them. scores: tag -> value.
        """

    def _replace(self, lines: list[Line]) -> None:
        self._stream.close()
        self._lines = lines
        self._write_anew()
        self._stream = self._opened()

    def _write_anew(self) -> None:
        atomic.write_text(self._path, "".join(json.dumps(line) + "\n" for line in self._lines))

    def _opened(self) -> TextIO:
        # Does not follow a link that somebody has put there since the file was written.
        follow = getattr(os, "O_NOFOLLOW", 0)  # which Windows lacks
        return open(self._path, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags | follow, 0o666))

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Derivations:
    """The lines of ``derived.jsonl``. next: what was derived after the epoch that is written next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.next: dict[str, str | None] | None = None
        self._lines: list[Line] | None = None  # read when they are needed first

    def write(self, epoch: int) -> None:
        choices, self.next = self.next, None
        lines = self.lines
        if choices is not None and (not lines or lines[-1]["choices"] != choices):
            self._replace([*lines, {"epoch": epoch, "choices": choices}])

    def resume(self, epochs: int) -> None:
        lines = self.lines
        if (kept := [line for line in lines if line["epoch"] < epochs]) != lines:
            self._replace(kept)

    @property
    def lines(self) -> list[Line]:
        if self._lines is None:
            self._lines = read_derived(self._path)
        return self._lines

    def _replace(self, lines: list[Line]) -> None:
        self._lines = lines
        atomic.write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))


class Silent(JsonLines):
    """Logs nothing. For processes that write no files."""

    def __init__(self) -> None:
        pass

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        pass

    def derived(self, choices: Mapping[str, str | None]) -> None:
        pass

    def resume(self, stage: str, epochs: int, metrics: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def read_lines(path: Path) -> tuple[list[Line], bool]:
    """Returns the logged lines, none if there is no file, and whether the file is undamaged.

    Leaves out a last line that a crash has cut. Leaves out other damaged lines too, and names them on standard error.
    Raises OutputError if the file cannot be read.
    """
    read: list[Line | None] = []
    whole = True
    try:
        with regular_file.opened(path, limit=SIZE_LIMIT) as stream:
            for line in stream:  # not all at once, which takes the memory of three files
                if len(read) == LINES:
                    raise OSError(errno.EFBIG, f"it has more than {LINES} lines")
                if whole := line.endswith(b"\n"):
                    read.append(parsed(line.decode("utf-8", errors="replace")))
    except FileNotFoundError:
        return [], True
    except OSError as error:
        raise OutputError(
            f"the metrics in {path} cannot be read ({error.strerror})",
            fix="move it elsewhere: the run goes on, and writes a new one",
        ) from error
    damaged = [str(number) for number, line in enumerate(read, start=1) if line is None]
    if damaged:
        which = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines ({', '.join(damaged[:5])}) are"
        print(f"warning: {path}: {which} damaged and left out, the others are kept", file=sys.stderr)
    return [line for line in read if line is not None], not damaged and whole


def read_derived(path: Path) -> list[Line]:
    """What ``derived.jsonl`` holds, in the order of the epochs. Damaged lines are left out, and a file that cannot be
    read is as one that is not there: it is for pictures."""
    try:
        content = regular_file.read(path, limit=SIZE_LIMIT)
    except OSError:
        return []
    found: list[Line] = []
    for text in content.decode("utf-8", errors="replace").split("\n", LINES)[:LINES]:
        line = read_json(text)
        if isinstance(line, dict) and is_epoch(line.get("epoch")) and is_choices(line.get("choices")):
            found.append(line)
    return sorted(found, key=lambda line: line["epoch"])


def is_choices(value: Any) -> bool:
    return isinstance(value, dict) and all(name is None or isinstance(name, str) for name in value.values())


def parsed(text: str) -> Line | None:
    """Returns the line of metrics that a text holds, or None."""
    line = read_json(text)
    return line if is_line(line) else None


def read_json(text: str) -> Any:
    try:
        return json.loads(text) if len(text) <= LINE_LIMIT else None
    except (ValueError, RecursionError):
        return None


def is_line(line: Any) -> bool:
    if not isinstance(line, dict) or line.get("stage") not in STAGES or not is_epoch(line.get("epoch")):
        return False
    values = [value for name, value in line.items() if name != "stage"]
    return all(value is None or is_number(value) for value in values)


def is_epoch(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def is_number(value: Any) -> bool:
    """Returns whether JSON and an event file can hold the value as a number."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
