"""What runs at each place of a replayed module under the gates of its choices."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nas.methods.cuda_graphs.replay_pass import NOTHING, Draw
from nas.methods.cuda_graphs.trace import Block, Place
from nas.spaces.cell import Cell
from nas.spaces.dead_edges import keeps_zeros, living
from nas.spaces.ops import Zero
from nas.supernet.choice import Choice, Gate


def is_of_one(gate: Gate) -> bool:
    """Says whether a gate runs a single candidate, with the gradient of a sampler's gate or without a gradient."""
    if gate.drawn is None or gate.others is not None or gate.share is not None:
        return False
    return gate.hard is None or gate.hard.all_values is not None


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


def drawn_of(blocks: Sequence[Block], shapes: Sequence[Any]) -> Draw:
    """Returns what runs under the gates that are set. shapes: of the blocks, see `shape_of`."""
    indices: list[int] = []
    cleared: list[int] = []
    empty: list[int] = []
    alike: dict[Any, Draw] = {}
    for block, shape in zip(blocks, shapes, strict=True):
        if block.cell is None:
            indices.append(drawn_by(block.rows[0][0].choice))
            continue
        if shape not in alike:
            alike[shape] = drawn_of_cell(block, block.cell)
        cell, first = alike[shape], block.rows[0][0].target.number
        indices += cell.indices
        cleared += [first + row for row in cell.cleared]
        empty += [first + row for row in cell.empty]
    return Draw(tuple(indices), cleared, empty)


def drawn_of_cell(block: Block, cell: Cell) -> Draw:
    """Returns what runs in a cell. Nodes are counted from the first that the cell computes, see `living`."""
    indices: list[int] = []
    operations = [[None if place.choice is None else place.choice.alone for place in row] for row in block.rows]
    alive = living(operations, inputs=cell.inputs, outputs=cell.outputs)
    for row, (sources, needed) in zip(block.rows, alive, strict=True):
        runs = sources if needed else ()
        indices += [drawn_by(place.choice) if source in runs else NOTHING for source, place in enumerate(row)]
    needs = [number for number, (_, needed) in enumerate(alive) if needed]
    return Draw(tuple(indices), needs, [number for number in needs if not alive[number][0]])


def drawn_by(choice: Choice | None) -> int:
    """Returns the candidate that runs under the gate that is set; for a module that is no choice, the module."""
    if choice is None:
        return 0
    assert choice.gate is not None
    assert choice.gate.drawn is not None
    return choice.gate.drawn
