"""The networks of several caps: a table, a picture and a genotype for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.drawing.front import Axis, draw_front
from nas.drawing.svg import to_svg
from nas.storage import atomic
from nas.supernet.genotype import Genotype
from nas.training.evaluate import Score
from nas.training.task import Metric


@dataclass(frozen=True)
class Point:
    """A network that was derived under one of several caps.

    cap: as in ``result.json``. parameters: of the network. score: of its operations inside the supernet, batch norms
    recalibrated, on the architecture's split: before any retraining.
    """

    genotype: Genotype
    cap: Mapping[str, Mapping[str, Any]]
    parameters: int
    score: Score

    def result(self, metric: Metric) -> dict[str, Any]:
        """As in ``front.json``."""
        return {
            "genotype": self.genotype.to_dict(),
            "cap": dict(self.cap),
            "derived_parameters": self.parameters,
            f"supernet_{metric.name}": self.score.metric,
            "supernet_loss": self.score.loss,
            "supernet_examples": self.score.examples,
        }

    def paid(self, name: str) -> float:
        """The cost of the network by the name of a cap: measured if that is known, else predicted."""
        found = self.cap[name]
        value: float = found.get("measured", found["predicted"])
        return value


def table(points: Sequence[Point], metric: Metric) -> tuple[list[str], list[list[str]]]:
    """Returns the headings and the rows, as texts."""
    names = list(points[0].cap)
    headings = ["network", *(f"{name} {what}" for name in names for what in ("cap", "of the network"))]
    rows = []
    for number, point in enumerate(points, 1):
        sizes = [shown(value) for name in names for value in (point.cap[name]["cap"], point.paid(name))]
        rows.append([str(number), *sizes, f"{point.parameters:,}", metric.show(point.score.metric)])
    return [*headings, "parameters", f"{metric.name.replace('_', ' ')} in the supernet"], rows


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def write(points: Sequence[Point], metric: Metric, directory: Path) -> list[Path]:
    """Writes ``front.json``, ``front.md``, ``front.svg``, and ``genotype_<number>.json`` of each network. The
    genotypes lie beside the checkpoint of the search, so that a retraining can start from its weights."""
    headings, rows = table(points, metric)
    lines = [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]
    of = next((name for name in points[0].cap if len({point.cap[name]["cap"] for point in points}) > 1), None)
    name = of or next(iter(points[0].cap))
    drawn = draw_front(
        [(point.paid(name), point.score.metric) for point in points],
        x=Axis(name.replace("_", " "), short),
        y=Axis(f"{metric.name.replace('_', ' ')} in the supernet", metric.show),
        title="Networks by their caps",
    )
    paths = [directory / f"genotype_{number}.json" for number in range(1, len(points) + 1)]
    for point, path in zip(points, paths, strict=True):
        atomic.write_text(path, point.genotype.to_json())
    atomic.write_json(directory / "front.json", [point.result(metric) for point in points])
    atomic.write_text(directory / "front.md", "\n".join(lines) + "\n")
    atomic.write_text(directory / "front.svg", to_svg(drawn))
    return [*paths, *(directory / f"front.{kind}" for kind in ("json", "md", "svg"))]


def short(value: float) -> str:
    """Three digits, with a letter for thousands, millions and billions."""
    value = float(f"{value:.3g}")  # or 999.6 would be 1e+03
    for letter, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"
