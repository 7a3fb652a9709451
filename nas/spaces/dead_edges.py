"""Which edges of a cell have a part in what it returns, given what is drawn: the others need not run.

Dead are `none`, what leaves a node that is zero because nothing living enters it, and what enters a node that no living
edge connects to the output. Losses are the same without them, to the bit, and so are the gradients: those of the gates
of dead edges are exactly 0, as is the weights' where the input is zero. What changes is what a zero gradient does
not move: the weights of a dead operation rest like those of one that is not drawn, instead of following their momentum
and decay, and its batch norms' running statistics rest too.
"""

from collections.abc import Sequence

from torch import nn

from nas.spaces.ops import FactorizedReduce, Zero
from nas.supernet.choice import Choice

# Modules that turn zeros into zeros, whatever they have learnt.
POINTWISE = (nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Tanh, nn.AvgPool2d, nn.MaxPool2d, Zero)


def living(
    operations: Sequence[Sequence[nn.Module | None]], *, inputs: int, outputs: Sequence[int]
) -> list[tuple[list[int], bool]]:
    """For each computed node the sources of its living edges, and whether it is needed at all: a node that is needed
    without a living edge is zeros.

    operations: of the edges into each computed node, by source, see `only_drawn`; the nodes before are the cell's
    `inputs`. outputs: nodes that it returns.
    Right in training mode: with running statistics a norm does not turn zeros into zeros.
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
    """The operation that is all of an edge; None for edges of another kind, where several operations run, where undrawn
    ones get a gradient, or where somebody is told, by a hook, what the edge does."""
    return edge.alone if isinstance(edge, Choice) and not is_watched(edge) else None


def is_watched(module: nn.Module) -> bool:
    """Whether a module's call does more than to run its forward pass."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
    )


def keeps_zeros(module: nn.Module) -> bool:
    """Whether a module in training mode is known to turn zeros into zeros, and into no gradient of its weights."""
    if is_watched(module):
        return False
    if isinstance(module, FactorizedReduce) or (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    ):
        return all(map(keeps_zeros, module.children()))
    if type(module) is nn.Conv2d:
        return module.bias is None
    if type(module) is nn.BatchNorm2d:
        return module.training and not module.affine
    return type(module) in POINTWISE
