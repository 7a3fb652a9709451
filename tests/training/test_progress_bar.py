import io
import re

import pytest
from rich.console import Console

from nas.training import progress_bar
from nas.training.progress_bar import Progress, shown
from nas.training.task import Classification, Metric

METRIC = Classification.metric
METRICS = {"weights/loss": 1.2345, "weights/accuracy": 0.5, "temperature": 0.1, "something/else": 3.0}


def console(*, width=200, **kwargs):
    return Console(file=io.StringIO(), highlight=False, width=width, **kwargs)


@pytest.fixture
def clock(monkeypatch):
    """Seconds, set by the test."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: Clock.now)
    return Clock


def test_plain_lines_when_it_is_no_terminal(clock):
    out = console(force_terminal=False)
    with Progress("search", 4, metric=METRIC, console=out) as bar:
        for epoch in range(4):
            for fraction in (0.5, 1.0):
                bar.step(epoch, fraction)
            clock.now += 10
            bar.epoch(epoch, METRICS)
    assert out.file.getvalue().splitlines() == [
        f"search {epoch + 1}/4  loss 1.234  accuracy 50.00%  tau 0.10  left {30 - 10 * epoch} s" for epoch in range(4)
    ]


def test_another_metric_is_shown_by_its_name():
    out = console(force_terminal=False)
    with Progress("search", 1, metric=Metric("absolute_error", higher_is_better=False), console=out) as bar:
        bar.epoch(0, {"weights/absolute_error": 0.12345, "arch/absolute_error": 2.0, "weights/accuracy": 1.0})
    assert "  absolute error 0.1235  arch absolute error 2  left" in out.file.getvalue()


def test_no_control_characters_when_it_is_no_terminal():
    out = console(force_terminal=False)
    with Progress("search", 1, metric=METRIC, console=out) as bar:
        bar.epoch(0, METRICS)
    assert re.fullmatch(r"[\x20-\x7e]*\n", out.file.getvalue())


def test_a_long_line_is_not_wrapped():
    out = Console(file=io.StringIO(), soft_wrap=True, highlight=False, width=20, force_terminal=False)
    with Progress("search", 1, metric=METRIC, console=out) as bar:
        bar.epoch(0, dict.fromkeys(shown(METRIC), 0.5))
    assert out.file.getvalue().count("\n") == 1


def test_a_terminal_shows_the_epoch():
    out = console(force_terminal=True)
    with Progress("search", 3, metric=METRIC, console=out) as bar:
        bar.step(0, 0.5)
        bar.epoch(0, METRICS)
        bar.step(1, 0.5)
        bar._bar.refresh()
    text = out.file.getvalue()
    assert "epoch 2/3" in text
    assert "loss 1.234" in text
    assert "search" in text


@pytest.mark.parametrize("width", [50, 80, 150])
def test_nothing_is_cut_off_in_a_terminal(width):
    out = console(force_terminal=True, width=width)
    metrics = {"arch/loss": 1.5, "arch/accuracy": 0.25, "entropy/mean": 1.609, "examples_per_second": 1234.0, **METRICS}
    with Progress("search", 100, metric=METRIC, console=out) as bar:
        bar.epoch(0, metrics)
        bar.step(1, 0.5)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.file.getvalue())
    lines = text[text.rindex("search") :].splitlines()
    assert max(map(len, lines)) <= width  # a longer one would spoil the lines above when the bar is drawn again
    last = " ".join(" ".join(lines).split())
    for part in (
        "epoch 2/100",
        "0:00:00 left",
        *(form(metrics[name]) for name, form in shown(METRIC).items() if name in metrics),
    ):
        assert part in last


def test_a_metrics_name_is_no_markup():
    for terminal in (False, True):
        out = console(force_terminal=terminal)
        with Progress("search", 1, metric=Metric("[red]", higher_is_better=True), console=out) as bar:
            bar.epoch(0, {"weights/[red]": 1.0})
        assert "[red] 1" in out.file.getvalue()


def test_it_stops_after_an_exception():
    out = console(force_terminal=True)
    bar = Progress("search", 3, metric=METRIC, console=out)
    with pytest.raises(ZeroDivisionError), bar:
        raise ZeroDivisionError
    assert not bar._bar.live.is_started


def test_the_time_left_of_a_resumed_run(clock):
    """Two of ten epochs are to do, at ten seconds each: after the first of them ten seconds are left."""
    out = console(force_terminal=False)
    with Progress("search", 10, metric=METRIC, console=out) as bar:
        clock.now += 10
        bar.epoch(8, {})
    assert "left 10 s" in out.file.getvalue()
