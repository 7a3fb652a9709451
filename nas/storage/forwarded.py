"""``metrics.jsonl``, and the same sent on: to the client of a service, or to a tracker of a user's own."""

import functools
import importlib
import importlib.util
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.drawing.canvas import Picture
from nas.drawing.png import to_png
from nas.errors import ConfigError
from nas.settings.building import complete
from nas.storage import atomic, event_tags
from nas.storage.metrics_log import JsonLines
from nas.storage.search_pictures import draw_derived, draw_leading, pictured, thinned
from nas.untrusted import regular_file

ID = ".tracker_id"  # a file with the service's name for the run, by which a resumed run goes on


class Forwarded(JsonLines):
    """A subclass says where metrics and pictures go: `send`, `picture`, and what it needs of `describe`, `finish` and
    `close`. package: what has to be installed, as pip and Python know it; empty for nothing."""

    package = ""

    def __init__(self, *, directory: Path) -> None:
        check_installed(type(self))  # before a file is open
        super().__init__(directory=directory)
        self._directory = directory
        self._now: dict[str, str | None] | None = None  # derived after the epoch that is logged next
        self._pictured: dict[str, str | None] | None = None

    def send(self, stage: str, epoch: int, values: Mapping[str, float]) -> None:
        """values: finite ones, by the tags of `nas.storage.event_tags`. epoch: from 1."""

    def picture(self, tag: str, png: bytes, epoch: int) -> None:
        """png: the content of a PNG file. epoch: from 1."""

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        super().log(stage, epoch, metrics)
        tags = event_tags.scalars(self._lines[-1])
        self.send(stage, epoch + 1, {tag: value for tag, value in tags if value is not None and math.isfinite(value)})
        if stage == "search" and self._now is not None:
            self._draw(epoch, self._now)
            self._now = None

    def derived(self, choices: Mapping[str, str | None]) -> None:
        super().derived(choices)
        self._now = dict(choices)

    def _draw(self, epoch: int, choices: dict[str, str | None]) -> None:
        """The derived architecture each time that it changes, and now and then which operations led until now."""
        if choices != self._pictured:
            self._pictured = choices
            probabilities = event_tags.probabilities(self._lines[-1])
            self._show("pictures/derived", draw_derived(choices, probabilities, epoch=epoch), epoch)
        lines = thinned(self._lines)
        if pictured(epoch) and (history := event_tags.history(lines)):
            drawn = draw_leading(history, lines, self._derivations.lines, epoch=epoch)
            self._show("pictures/leading", drawn, epoch)

    def _show(self, tag: str, drawn: Picture, epoch: int) -> None:
        self.picture(tag, to_png(drawn, colours=128)[0], epoch + 1)

    def client(self) -> Any:
        """The package, imported."""
        return importlib.import_module(self.package)

    def known_as(self, new: str | None = None) -> str:
        """The service's name for the run; of a run that has none yet `new`, or a random one."""
        path = self._directory / ID
        try:
            found = regular_file.read(path, limit=100).decode("ascii").strip()
            if found.isalnum():
                return found
        except (OSError, UnicodeDecodeError):
            pass
        name = new or uuid.uuid4().hex[:12]
        atomic.write_text(path, name)
        return name


class Adapted(Forwarded):
    """A tracker of a user's own. It needs `log(stage, epoch, metrics)`; those of the other methods that it has are
    called too: `resume`, `derived`, `describe`, `finish`, `picture`, `close`."""

    def __init__(self, inner: Any, *, directory: Path) -> None:
        if not callable(getattr(inner, "log", None)):
            raise ConfigError(
                f"the tracker is a {type(inner).__name__} without a method log, expected log(stage, epoch, metrics)",
                fix="add the method, or subclass nas.storage.JsonLines",
            )
        self._inner = inner
        super().__init__(directory=directory)

    def _call(self, method: str, *arguments: Any, **named: Any) -> None:
        if callable(found := getattr(self._inner, method, None)):
            found(*arguments, **named)

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        self._inner.log(stage, epoch, metrics)
        super().log(stage, epoch, metrics)

    def resume(self, stage: str, epochs: int, metrics: Mapping[str, float]) -> None:
        self._call("resume", stage, epochs, metrics)
        super().resume(stage, epochs, metrics)

    def derived(self, choices: Mapping[str, str | None]) -> None:
        self._call("derived", choices)
        super().derived(choices)

    def describe(self, *, texts: Mapping[str, str], settings: Mapping[str, Any], scores: Sequence[str]) -> None:
        self._call("describe", texts=texts, settings=settings, scores=scores)

    def finish(self, scores: Mapping[str, float], *, texts: Mapping[str, str]) -> None:
        self._call("finish", scores, texts=texts)

    def _draw(self, epoch: int, choices: dict[str, str | None]) -> None:
        if callable(getattr(self._inner, "picture", None)):  # drawing takes a tenth of a second
            super()._draw(epoch, choices)

    def picture(self, tag: str, png: bytes, epoch: int) -> None:
        self._inner.picture(tag, png, epoch)

    def close(self) -> None:
        self._call("close")
        super().close()


def check_installed(tracker: Any) -> None:
    """Raises ConfigError if a tracker, or a partial of one, needs a package that is not installed."""
    package = getattr(tracker.func if isinstance(tracker, functools.partial) else tracker, "package", "")
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"tracker={package} needs {package}, which is not installed",
            fix=f"pip install 'gumbel-nas[{package}]', or set tracker=tensorboard",
        )


def opened_tracker(tracker: Any, directory: Path) -> JsonLines:
    """Returns the tracker of a run. tracker: a tracker, or a class or function that makes one from `directory`."""
    made = complete(tracker, directory=directory)
    return made if isinstance(made, JsonLines) else Adapted(made, directory=directory)
