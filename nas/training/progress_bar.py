"""Progress for a person: a live bar in a terminal, a line an epoch elsewhere."""

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from nas.training.hooks import Hook
from nas.training.task import Metric
from nas.untrusted.escaping import printable

Form = Callable[[float], str]


def shown(metric: Metric) -> dict[str, Form]:
    """metric -> how it is shown; those a stage does not have are left out. metric: the task's."""
    name = printable(metric.name.replace("_", " "))
    return {
        "weights/loss": "loss {:.3f}".format,
        f"weights/{metric.name}": lambda value: f"{name} {metric.show(value)}",
        "arch/loss": "arch loss {:.3f}".format,
        f"arch/{metric.name}": lambda value: f"arch {name} {metric.show(value)}",
        "temperature": "tau {:.2f}".format,
        "entropy/mean": "entropy {:.3f}".format,
        "lr/weights": "lr {:.4f}".format,
        "examples_per_second": "{:.0f} examples/s".format,
    }


class Bar(rich.progress.Progress):
    """A bar with the metrics below it: beside it they would leave no room for it, nor for the time that is left."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (task.fields["text"] for task in self.tasks if task.fields["text"])


class Progress(Hook):
    """Progress of one stage. `step` is free of synchronisation; `epoch` shows the epoch's metrics."""

    def __init__(self, stage: str, epochs: int, *, metric: Metric, console: Console | None = None) -> None:
        self._stage = stage
        self._shown = shown(metric)
        self._epochs = epochs
        self._console = console or Console(highlight=False)
        self._started = time.monotonic()
        self._first: int | None = None  # the epoch this process began with: a resumed run begins later
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.fields[epoch]}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=epochs, epoch=0, text="")

    def after_step(self, state: Any) -> None:
        self.step(state.epoch, state.step / state.steps)

    def after_epoch(self, state: Any) -> None:
        self.epoch(state.epoch - 1, state.metrics)

    def step(self, epoch: int, fraction: float) -> None:
        """fraction: of the epoch that is done."""
        self._begin(epoch)
        self._bar.update(self._task, completed=epoch + fraction, epoch=epoch + 1)

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self._begin(epoch)
        assert self._first is not None  # _begin
        text = "  ".join(form(metrics[name]) for name, form in self._shown.items() if name in metrics)
        # No markup in it: a metric's name is a user's own.
        self._bar.update(self._task, completed=epoch + 1, text=Text(text))
        if not self._console.is_terminal:
            elapsed = time.monotonic() - self._started
            left = elapsed / (epoch + 1 - self._first) * (self._epochs - epoch - 1)
            line = f"{self._stage} {epoch + 1}/{self._epochs}  {text}  left {left:.0f} s"
            self._console.print(line, soft_wrap=True, markup=False)

    def _begin(self, epoch: int) -> None:
        if self._first is None:
            self._first = epoch

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
