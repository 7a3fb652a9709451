"""Finds the dead edges of a cell, which have no effect on the cell's output under the drawn operations.

An edge is dead if its operation is `none`, if it leaves a node that is zero because no living edge enters the node, or
if it enters a node that no living edge connects to the output. A dead edge need not run. Losses and gradients are the
same without dead edges, to the bit: the gates of dead edges have a gradient of exactly 0, and so have weights whose
input is zero. One thing differs: the weights of a dead operation, like those of an operation that is not drawn, do not
follow their momentum and decay, and the running statistics of its batch norms do not change.
"""

from collections.abc import Sequence

from torch import nn

from nas.spaces.ops import FactorizedReduce, Zero
from nas.supernet.choice import Choice
from nas.supernet.entanglement import CentreConv2d
from nas.supernet.hooked import is_watched

# Modules that always map zeros to zeros.
POINTWISE = (nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Tanh, nn.AvgPool2d, nn.MaxPool2d, Zero)


def living(
    operations: Sequence[Sequence[nn.Module | None]], *, inputs: int, outputs: Sequence[int]
) -> list[tuple[list[int], bool]]:
    """Returns for each computed node the sources of its living edges, and whether the cell needs the node.

    A needed node without a living edge is zeros.

    operations: for each computed node the operations of its edges, by source, see `only_drawn`. inputs: the number of
    input nodes, which come first. outputs: the nodes that the cell returns.
    Valid in training mode only: in evaluation mode a norm with running statistics does not map zeros to zeros.
    """
    into: list[list[int]] = []
    nonzero = set(range(inputs))
    for node, incoming in enumerate(operations, inputs):
        sources = []
        for source, operation in enumerate(incoming):
            if operation is None or not (
                isinstance(operation, Zero) or (source not in nonzero and keeps_zeros(operation))
            ):
                sources.append(source)
        into.append(sources)
        if sources:
            nonzero.add(node)
    needed = set(outputs)
    for node in reversed(range(inputs, inputs + len(operations))):
        if node in needed:
            needed.update(into[node - inputs])
    return [(sources, node in needed) for node, sources in enumerate(into, inputs)]


def only_drawn(edge: nn.Module) -> nn.Module | None:
    """Returns the only operation that an edge runs, or None.

    Returns None for edges that are no `Choice`, if several operations run, if undrawn operations get a gradient, or
    if the edge has a hook.
    """
    return edge.alone if isinstance(edge, Choice) and not is_watched(edge) else None


def keeps_zeros(module: nn.Module) -> bool:
    """Whether a module in training mode certainly maps zeros to zeros, with a zero gradient for its weights."""
    if is_watched(module):
        return False
    if isinstance(module, FactorizedReduce) or (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    ):
        return all(map(keeps_zeros, module.children()))
    if type(module) in (nn.Conv2d, CentreConv2d):
        return module.bias is None
    if type(module) is nn.BatchNorm2d:
        return module.training and not module.affine
    return type(module) in POINTWISE
