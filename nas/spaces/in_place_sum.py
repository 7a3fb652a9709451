"""Sums that take the place of one of their terms, where nobody needs that any more: a node's value is written where a
cache already holds it, and one tensor less is allocated."""

from collections.abc import Sequence

from torch import Tensor, nn

from nas.spaces.dead_edges import is_watched
from nas.spaces.shared_prefix import Start
from nas.supernet.choice import Choice

# Modules whose output neither they nor autograd keep for the backward pass.
FORGETFUL = (nn.BatchNorm2d, nn.AvgPool2d, nn.MaxPool2d)


def owns_output(edge: nn.Module, operation: nn.Module | None, start: Start | None) -> bool:
    """Whether the output of an edge is its caller's alone.

    operation: that is all of the edge, None if it is not known. start: what it shares with others.
    """
    if operation is None or (start is not None and start.whole):
        return False
    if isinstance(edge, Choice) and edge.gate is not None and edge.gate.hard is not None:
        return forgets_its_output(operation) and not edge.gate.hard.keeps_output(operation)
    return forgets_its_output(operation)


def forgets_its_output(operation: nn.Module) -> bool:
    """Whether an operation keeps nothing of its output, nor hands it to somebody else, by a hook."""
    module: nn.Module | None = operation
    while (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and len(module)
        and not is_watched(module)
    ):
        module = next(reversed(module._modules.values()))
    return type(module) in FORGETFUL and module is not None and not is_watched(module)


def summed(terms: Sequence[Tensor], owned: Sequence[bool]) -> Tensor:
    """The sum of one or more terms, formed in the first of those that are `owned`, if there is one."""
    first = owned.index(True) if True in owned else 0
    total, own = terms[first], owned[first]
    for index, term in enumerate(terms):
        if index == first:
            continue
        if own and total.dtype == term.dtype:
            total = total.add_(term)
        else:
            total = total + term
            own = True
    return total
