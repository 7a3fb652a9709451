"""Finds the cells of an architecture from its choice keys: ``normal/0-2`` is an edge of the cell ``normal``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

EDGE = re.compile(r"(.*?)/?([0-9]{1,3})-([0-9]{1,3})", re.DOTALL)
MOST_NODES = 24  # of a cell that is drawn; choices of a larger one are listed
MOST_CELLS = 24  # that are drawn; those of further ones are listed
CONCATENATED = ("normal", "reduce")  # cells of NASNet's kind, whose output is all their nodes


@dataclass(frozen=True)
class Cell:
    """A cell. edges: (source, node) -> operation, None for a dropped edge. keys: (source, node) -> choice key."""

    name: str
    edges: Mapping[tuple[int, int], str | None]
    keys: Mapping[tuple[int, int], str]

    @property
    def nodes(self) -> range:
        return range(max(node for _, node in self.edges) + 1)

    @property
    def inputs(self) -> list[int]:
        return [node for node in self.nodes if node not in {target for _, target in self.edges}]

    @property
    def concatenated(self) -> bool:
        return self.name in CONCATENATED

    @property
    def title(self) -> str:
        return {"normal": "normal cell", "reduce": "reduction cell", "": "cell"}.get(self.name, self.name)


def parted(choices: Mapping[str, str | None]) -> tuple[list[Cell], dict[str, str | None]]:
    """Splits an architecture into its cells and the choices that are not edges of a cell."""
    edges: dict[str, dict[tuple[int, int], str]] = {}
    for key in choices:
        found = EDGE.fullmatch(key)
        if found and int(found[2]) < int(found[3]):
            edges.setdefault(found[1], {}).setdefault((int(found[2]), int(found[3])), key)
    cells = [
        Cell(name, {edge: choices[key] for edge, key in keys.items()}, keys)
        for name, keys in edges.items()
        if max(node for _, node in keys) < MOST_NODES
    ][:MOST_CELLS]
    drawn = {key for cell in cells for key in cell.keys.values()}
    return cells, {key: name for key, name in choices.items() if key not in drawn}


def in_words(choices: Mapping[str, str | None]) -> str:
    return ", ".join(f"{key}: {name}" for key, name in choices.items() if name is not None)
