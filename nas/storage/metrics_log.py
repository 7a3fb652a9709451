"""Logs the metrics of a run: always to ``metrics.jsonl``, by default also to TensorBoard."""

import json
import math
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from nas.drawing.architecture_picture import draw_architecture
from nas.drawing.canvas import Picture
from nas.drawing.heat_map import draw_heat_map
from nas.drawing.history import draw_history
from nas.drawing.png import to_png
from nas.drawing.timeline import draw_timeline
from nas.errors import OutputError
from nas.storage import atomic, event_tags
from nas.untrusted import regular_file
from nas.untrusted.escaping import fenced

Line = dict[str, Any]
STAGES = ("search", "retrain")
SIZE_LIMIT = 50_000_000  # bytes of metrics.jsonl; a thousand epochs take about two million
LINES = 100_000  # of it, one an epoch
LINE_LIMIT = 2_000_000  # bytes of one; the probabilities of 20,000 candidates take 900,000

OURS = ".nas"  # suffix of our event files; other event files are left alone
RECORD_LIMIT = 10_000_000  # bytes of an event; a number takes a hundred, a picture twenty thousand
DERIVED = "derived.jsonl"
PICTURES = ("pictures/derived", "pictures/heat_map", "pictures/history", "pictures/leading")
HUES = ("pictures/history", "pictures/leading")  # need more colours: thin lines of eight hues have few pixels
BINS = 20  # of a histogram
DRAWINGS = 60  # of derived architectures, one after each change; then only with the other pictures. One takes 30 kB.
HISTORY = 60  # epochs that a picture of the history shows


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
        return open(self._path, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags | follow))

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


class TensorBoard(JsonLines):
    """Also writes cards in groups (see `nas.storage.event_tags`), pictures, histograms and texts for TensorBoard.

    They are in an event file in the run's directory. The steps are the epochs, counted from 1 as on the console.

    When a run is resumed, the file is written again from ``metrics.jsonl``. Events cannot be removed from a file, and
    steps that a second file repeats would be shown twice. The old file's times of day are kept. Its pictures are kept
    too, because ``metrics.jsonl`` does not have what was derived.
    """

    def __init__(self, *, directory: Path) -> None:
        super().__init__(directory=directory)
        self._directory = directory
        self._choices: dict[str, str | None] | None = None  # derived after the epoch that is logged next
        self._pictured: dict[str, str | None] | None = None
        self._due: tuple[int, dict[str, str | None]] | None = None
        self._described: dict[str, Any] | None = None
        self._start()

    def _start(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and not everybody uses it

        before = list(self._directory.glob(f"events.out.tfevents.*{OURS}"))
        mine = [old for old in before if old.is_file()]
        times = {known: time for old in mine for known, time in wall_times(old)}
        epochs = max((line["epoch"] + 1 for line in self._lines if line["stage"] == "search"), default=0)
        self._writer = SummaryWriter(log_dir=str(self._directory), filename_suffix=OURS)
        self._files: Any = self._writer.file_writer  # torch's annotation says None
        self._laid_out = False
        self._drawings = 0
        for line in self._lines:
            self._draw(line, time=times.get((line["stage"], line["epoch"])))
        for old in mine:
            self._keep_pictures(old, epochs)
        if self._described is not None:
            self.describe(**self._described)
        self._writer.flush()
        for old in before:
            old.unlink()

    def _keep_pictures(self, old: Path, epochs: int) -> None:
        for event in events(old):
            for value in event.summary.value:
                if value.WhichOneof("value") == "image" and value.tag in PICTURES and 1 <= event.step <= epochs:
                    self._write(value, step=event.step, time=event.wall_time)
                    self._drawings += value.tag == "pictures/derived"

    def _write(self, value: Any, *, step: int, time: float | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._files.add_summary(Summary(value=[value]), step, walltime=time)

    def _draw(self, line: Line, *, time: float | None = None) -> None:
        """Writes the cards of a line. time: of day, in seconds since 1970; None for now."""
        step = line["epoch"] + 1
        for tag, value in event_tags.scalars(line):
            self._writer.add_scalar(tag, math.nan if value is None else value, step, walltime=time)
        for tag, values in event_tags.histograms(line):
            finite = [value for value in values if math.isfinite(value)]
            if finite:
                import numpy

                self._writer.add_histogram(tag, numpy.array(finite), step, bins=BINS, walltime=time)
        if line["stage"] == "search" and not self._laid_out:
            self._laid_out = True
            self._writer.add_custom_scalars(event_tags.layout(line))

    def derived(self, choices: Mapping[str, str | None]) -> None:
        super().derived(choices)
        self._choices = dict(choices)

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        super().log(stage, epoch, metrics)
        self._draw({"stage": stage, "epoch": epoch, **metrics})
        if stage == "search" and self._choices is not None:
            self._draw_pictures(epoch, self._choices)
            self._choices = None
        self._writer.flush()

    def _draw_pictures(self, epoch: int, choices: dict[str, str | None]) -> None:
        probabilities = event_tags.probabilities(self._lines[-1])
        if self._drawings < DRAWINGS:
            self._draw_derived(epoch, choices, probabilities)
        self._due = (epoch, choices)
        if event_tags.pictured(epoch):
            self._draw_probabilities()

    def _draw_derived(
        self, epoch: int, choices: dict[str, str | None], probabilities: event_tags.Probabilities
    ) -> None:
        if choices != self._pictured:
            self._pictured = choices
            self._drawings += 1
            picture = draw_architecture(
                choices, title=f"derived after epoch {epoch + 1}", probabilities=probabilities, stacked=True
            )
            self._show("pictures/derived", picture, epoch)

    def _draw_probabilities(self) -> None:
        """Writes the pictures after the last epoch of the search, unless they are written already."""
        if self._due is None:
            return
        epoch, choices = self._due
        self._due = None
        done = [line for line in self._lines if line["stage"] == "search"]
        probabilities = event_tags.probabilities(done[-1])
        self._draw_derived(epoch, choices, probabilities)
        if not probabilities:
            return
        title = f"probabilities in per cent after epoch {epoch + 1}"
        self._show("pictures/heat_map", draw_heat_map(probabilities, title=title, chosen=choices, stacked=True), epoch)
        lines = done[:: max(1, len(done) // HISTORY)]
        history = event_tags.history(lines)
        self._show("pictures/history", draw_history(history, title=f"probabilities until epoch {epoch + 1}"), epoch)
        leading = draw_timeline(
            history,
            epochs=[line["epoch"] + 1 for line in lines],
            title=f"leading operations until epoch {epoch + 1}",
            derived=[(line["epoch"] + 1, line["choices"]) for line in self._derivations.lines],
        )
        self._show("pictures/leading", leading, epoch)

    def _show(self, tag: str, picture: Picture, epoch: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        content, width, height = to_png(picture, colours=128 if tag in HUES else 32)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        self._write(Summary.Value(tag=tag, image=image), step=epoch + 1)

    def describe(self, *, texts: Mapping[str, str], settings: Mapping[str, Any], scores: Sequence[str]) -> None:
        from torch.utils.tensorboard.summary import hparams

        self._described = {"texts": texts, "settings": settings, "scores": scores}
        self._write_texts(texts)
        # The same summaries as those of add_hparams, which would write them into a second run below this one.
        experiment, start, self._end = hparams(dict(settings), dict.fromkeys(scores, 0.0))
        for summary in (experiment, start):
            self._files.add_summary(summary)

    def finish(self, scores: Mapping[str, float], *, texts: Mapping[str, str]) -> None:
        self._write_texts(texts)
        for tag, value in scores.items():
            self._writer.add_scalar(tag, value, 1)
        if self._described is not None:
            self._files.add_summary(self._end)
        self._writer.flush()

    def _write_texts(self, texts: Mapping[str, str]) -> None:
        for title, text in texts.items():
            self._writer.add_text(title, "\n".join(fenced("", text)))

    def _replace(self, lines: list[Line]) -> None:
        super()._replace(lines)
        self._due = None
        self._writer.close()  # first, so that the file is complete when its times are read
        self._start()

    def close(self) -> None:
        self._draw_probabilities()
        self._writer.close()
        super().close()


def read_lines(path: Path) -> tuple[list[Line], bool]:
    """Returns the logged lines, none if there is no file, and whether the file is undamaged.

    Leaves out a last line that a crash has cut. Leaves out other damaged lines too, and names them on standard error.
    Raises OutputError if the file cannot be read.
    """
    try:
        content = regular_file.read(path, limit=SIZE_LIMIT)
    except FileNotFoundError:
        return [], True
    except OSError as error:
        raise OutputError(
            f"the metrics in {path} cannot be read ({error.strerror})", fix="remove it: it is written anew"
        ) from error
    if content.count(b"\n") > LINES:
        raise OutputError(f"the metrics in {path} have more than {LINES} lines", fix="remove it: it is written anew")
    *complete, cut = content.decode("utf-8", errors="replace").split("\n")
    read = [parsed(text) for text in complete]
    damaged = [str(number) for number, line in enumerate(read, start=1) if line is None]
    if damaged:
        which = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines ({', '.join(damaged[:5])}) are"
        print(f"warning: {path}: {which} damaged and left out, the others are kept", file=sys.stderr)
    return [line for line in read if line is not None], not damaged and not cut


def read_derived(path: Path) -> list[Line]:
    """What ``derived.jsonl`` holds, in the order of the epochs. Damaged lines are left out, and a file that cannot be
    read is as one that is not there: it is for pictures."""
    try:
        content = regular_file.read(path, limit=SIZE_LIMIT)
    except OSError:
        return []
    found: list[Line] = []
    for text in content.decode("utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("epoch")) is int and is_choices(line.get("choices")):
            found.append(line)
    return sorted(found, key=lambda line: line["epoch"])


def is_choices(value: Any) -> bool:
    return isinstance(value, dict) and all(name is None or isinstance(name, str) for name in value.values())


def parsed(text: str) -> Line | None:
    """Returns the line of metrics that a text holds, or None."""
    try:
        line = json.loads(text) if len(text) <= LINE_LIMIT else None
    except (ValueError, RecursionError):
        return None
    return line if is_line(line) else None


def wall_times(path: Path) -> Iterator[tuple[tuple[str, int], float]]:
    """Yields ((stage, epoch), time of day) for the cards in a file, up to the first damaged event."""
    for event in events(path):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                yield (event_tags.stage(value.tag), event.step - 1), event.wall_time


def events(path: Path) -> Iterator[Any]:
    """Yields the events in a file, up to the first damaged event.

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
            yield event


def is_line(line: Any) -> bool:
    if not isinstance(line, dict) or line.get("stage") not in STAGES or type(line.get("epoch")) is not int:
        return False
    values = [value for name, value in line.items() if name != "stage"]
    return 0 <= line["epoch"] < 2**31 and all(value is None or is_number(value) for value in values)


def is_number(value: Any) -> bool:
    """Returns whether JSON and an event file can hold the value as a number."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
