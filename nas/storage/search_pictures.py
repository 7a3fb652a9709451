"""The pictures of a search that several trackers show: what was derived, and which operations led until then."""

from collections.abc import Mapping, Sequence

from nas.drawing.architecture_picture import draw_architecture
from nas.drawing.canvas import Picture
from nas.drawing.timeline import draw_timeline
from nas.storage.event_tags import Probabilities
from nas.storage.metrics_log import Line

HISTORY = 60  # epochs that a picture of the history shows


def pictured(epoch: int) -> bool:
    """Returns whether the pictures are drawn after an epoch: after the first three, then after every twentieth.

    A picture takes as many bytes as a hundred epochs of a curve, and a tenth of a second.
    """
    return epoch < 3 or (epoch + 1) % 20 == 0


def draw_derived(choices: Mapping[str, str | None], probabilities: Probabilities, *, epoch: int) -> Picture:
    title = f"derived after epoch {epoch + 1}"
    return draw_architecture(choices, title=title, probabilities=probabilities, stacked=True)


def thinned(lines: Sequence[Line]) -> list[Line]:
    """Returns those of the search, evenly spaced if there are many, for a picture of the history."""
    done = [line for line in lines if line["stage"] == "search"]
    return done[:: max(1, len(done) // HISTORY)]


def draw_leading(
    history: Mapping[str, Mapping[str, Sequence[float]]],
    lines: Sequence[Line],
    derived: Sequence[Line],
    *,
    epoch: int,
) -> Picture:
    """history: of the lines, see `nas.storage.event_tags.history`. derived: the lines of ``derived.jsonl``."""
    return draw_timeline(
        history,
        epochs=[line["epoch"] + 1 for line in lines],
        title=f"leading operations until epoch {epoch + 1}",
        derived=[(line["epoch"] + 1, line["choices"]) for line in derived],
    )
