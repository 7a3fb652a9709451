"""What runs at each place of a replayed module when its choices have drawn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nas.methods.cuda_graphs.replay_pass import NOTHING, Draw
from nas.methods.cuda_graphs.trace import Block, Place, Tape
from nas.spaces.cell import Cell
from nas.spaces.dead_edges import keeps_zeros, living
from nas.spaces.ops import Zero
from nas.supernet.choice import Choice, Gate

# The draws that are remembered, at some 10 kB of the host's memory each. All of a space with as many draws: these come
# again. Of a larger space only some, for the end of a search.
MOST, SOME = 16384, 4096


def is_of_one(gate: Gate) -> bool:
    """Says whether a gate runs a single candidate, with the gradient of a sampler's gate or without a gradient."""
    if gate.drawn is None or gate.others is not None or gate.share is not None:
        return False
    return gate.hard is None or gate.hard.all_values is not None


class Draws:
    """What runs at each place of a tape, by what its choices draw.

    alike: the choices in groups that have one key, and so draw the same. most: the number of draws to remember.
    """

    def __init__(self, tape: Tape) -> None:
        places = list(tape.places())  # by their numbers
        self.alike = choices_alike(places)
        self.most = MOST if math.prod(len(choices[0].names) for choices in self.alike) <= MOST else SOME
        self._groups = {choice: number for number, choices in enumerate(self.alike) for choice in choices}
        self._group_of = [None if place.choice is None else self._groups[place.choice] for place in places]
        self._blocks = tape.blocks
        self._layout: list[tuple[Block, Any, int]] = []  # with its shape and the first node that it computes
        self._known: dict[tuple[int, ...], Draw] = {}

    def of(self, drawn: tuple[int, ...]) -> Draw:
        """Returns what runs. drawn: by the groups of choices. Valid while the module is in training mode."""
        if (found := self._known.get(drawn)) is None:
            if len(self._known) == self.most:
                self._known.clear()
            # A module that is no choice is its own candidate.
            found = self._known[drawn] = self._new([0 if group is None else drawn[group] for group in self._group_of])
        return found

    def _new(self, drawn: Sequence[int]) -> Draw:
        """drawn: by places."""
        if not self._layout:
            shapes: dict[Any, int] = {}
            for block in self._blocks:
                shape = shapes.setdefault(shape_of(block, self._groups), len(shapes))
                self._layout.append((block, shape, block.rows[0][0].target.number))
        indices: list[int] = []
        cleared: list[int] = []
        empty: list[int] = []
        alike: dict[Any, Draw] = {}
        for block, shape, first in self._layout:
            if block.cell is None:
                indices.append(drawn[block.first])
                continue
            if (cell := alike.get(shape)) is None:
                cell = alike[shape] = drawn_of_cell(block, block.cell, drawn[block.first : block.last])
            indices += cell.indices
            cleared += [first + row for row in cell.cleared]
            if cell.empty:
                empty += [first + row for row in cell.empty]
        return Draw(tuple(indices), cleared, empty)


def choices_alike(places: Sequence[Place]) -> list[list[Choice]]:
    """Returns the choices of the places in groups that have one key, and so one gate."""
    found: dict[Any, list[Choice]] = {}
    for place in places:
        if place.choice is not None:
            found.setdefault(place.choice.key or id(place.choice), []).append(place.choice)
    return list(found.values())


def shape_of(block: Block, groups: Mapping[Choice, int]) -> Any:
    """Returns a value that is equal for cells in which the same places live, whatever is drawn.

    `living` reads no more.
    """
    operations = [
        (
            None if place.choice is None else groups[place.choice],
            *((isinstance(one, Zero), isinstance(one, nn.Module) and keeps_zeros(one)) for one in place.candidates),
        )
        for row in block.rows
        for place in row
    ]
    return None if block.cell is None else (block.cell.inputs, block.cell.outputs), tuple(operations)


def drawn_of_cell(block: Block, cell: Cell, drawn: Sequence[int]) -> Draw:
    """Returns what runs in a cell. Nodes are counted from the first that the cell computes, see `living`."""
    indices: list[int] = []
    operations = [[alone(place, drawn[place.number - block.first]) for place in row] for row in block.rows]
    alive = living(operations, inputs=cell.inputs, outputs=cell.outputs)
    for row, (sources, needed) in zip(block.rows, alive, strict=True):
        runs, first = sources if needed else (), len(indices)
        indices += [drawn[first + source] if source in runs else NOTHING for source in range(len(row))]
    needs = [number for number, (_, needed) in enumerate(alive) if needed]
    return Draw(tuple(indices), needs, [number for number in needs if not alive[number][0]])


def alone(place: Place, index: int) -> nn.Module | None:
    """Returns the operation that is drawn at the place of a choice. Returns None for another place."""
    candidate = place.candidates[index]
    return candidate if place.choice is not None and isinstance(candidate, nn.Module) else None
