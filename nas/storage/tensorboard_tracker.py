"""TensorBoard."""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.drawing.canvas import Picture
from nas.drawing.heat_map import draw_heat_map
from nas.drawing.history import draw_history
from nas.drawing.png import to_png
from nas.storage import event_tags
from nas.storage.metrics_log import JsonLines, Line
from nas.storage.search_pictures import draw_derived, draw_leading, pictured, thinned
from nas.untrusted import regular_file
from nas.untrusted.escaping import fenced

OURS = ".nas"  # suffix of our event files; other event files are left alone
RECORD_LIMIT = 10_000_000  # bytes of an event; a number takes a hundred, a picture twenty thousand
PICTURES = ("pictures/derived", "pictures/heat_map", "pictures/history", "pictures/leading")
HUES = ("pictures/history", "pictures/leading")  # need more colours: thin lines of eight hues have few pixels
BINS = 20  # of a histogram
DRAWINGS = 60  # of derived architectures, one after each change; then only with the other pictures. One takes 30 kB.


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

        found = self._directory.glob(f"events.out.tfevents.*{OURS}")
        before = [old for old in found if old.is_symlink() or not old.is_dir()]
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
        if pictured(epoch):
            self._draw_probabilities()

    def _draw_derived(
        self, epoch: int, choices: dict[str, str | None], probabilities: event_tags.Probabilities
    ) -> None:
        if choices != self._pictured:
            self._pictured = choices
            self._drawings += 1
            self._show("pictures/derived", draw_derived(choices, probabilities, epoch=epoch), epoch)

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
        lines = thinned(done)
        history = event_tags.history(lines)
        self._show("pictures/history", draw_history(history, title=f"probabilities until epoch {epoch + 1}"), epoch)
        self._show("pictures/leading", draw_leading(history, lines, self._derivations.lines, epoch=epoch), epoch)

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
