"""The sums of a cell in training, faster: edges that have no part in its outputs do not run (`dead_edges`), operations
share what they begin with (`shared_prefix`), and a sum takes the place of one of its terms (`in_place_sum`)."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from nas.spaces.dead_edges import living, only_drawn
from nas.spaces.in_place_sum import owns_output, summed
from nas.spaces.shared_prefix import shared_starts
from nas.supernet.choice import Choice


def run_planned(
    edges: Sequence[Sequence[nn.Module]],
    states: Sequence[Tensor],
    *,
    outputs: Sequence[int],
    dropped: Callable[[nn.Module, Any], Any],
) -> list[Any]:
    """The nodes of `outputs`, see `Cell`.

    edges: into each computed node, by source. states: the nodes that the cell is given. dropped: what drop path makes
    of an edge's output.
    """
    inputs = len(states)
    operations = [[only_drawn(edge) for edge in incoming] for incoming in edges]
    plan = living(operations, inputs=inputs, outputs=outputs)
    starts = shared_starts(operations, plan)
    nodes: dict[int, Any] = dict(enumerate(states))
    started: dict[Any, Tensor] = {}  # source and kind of a shared start -> its output
    for row, (incoming, (sources, needed)) in enumerate(zip(edges, plan, strict=True)):
        if not needed:
            continue
        if not sources:
            none = operations[row][0]
            assert none is not None  # what enters from the cell's own input is `none`, or the node were not zeros
            nodes[inputs + row] = none(nodes[0])
            continue
        terms, owned = [], []
        for source in sources:
            edge, start = incoming[source], starts.get((row, source))
            if start is None:
                output = edge(nodes[source])
            else:
                if (source, start.kind) not in started:
                    started[source, start.kind] = start.module(nodes[source])
                output = cast(Choice, edge).instead(start.rest, started[source, start.kind])
            terms.append(dropped(edge, output))
            owned.append(owns_output(edge, operations[row][source], start))
        known = None not in operations[row]
        nodes[inputs + row] = summed(terms, owned) if known else functools.reduce(operator.add, terms)
    return [nodes[node] for node in outputs]
