"""Writes the report of a study as Markdown."""

from collections.abc import Mapping
from typing import Any

from nas.studies.parts import Grid, about, parts


def markdown(known: Mapping[str, Any]) -> str:
    """Returns the report as Markdown. known: see `nas.studies.report.report`."""
    lines = [f"# {known['name']}", "", about(known), ""]
    for part in parts(known):
        lines += [f"## {part.heading}", ""]
        for one in part.content:
            lines += [*(table(one) if isinstance(one, Grid) else [one]), ""]
    return "\n".join(lines)


def table(grid: Grid) -> list[str]:
    rows = (grid.headings, ["---"] * len(grid.headings), *grid.rows)
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in escaped]
