"""Adds up the terms of a node in place of one term that nothing else needs.

The sum is written to memory that a cache already holds, and one tensor fewer is allocated.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from nas.spaces.shared_prefix import Start
from nas.supernet.choice import Choice
from nas.supernet.hooked import is_watched

# Modules whose output neither they nor autograd keep for the backward pass.
FORGETFUL = (nn.BatchNorm2d, nn.AvgPool2d, nn.MaxPool2d)


def owns_output(edge: nn.Module, operation: nn.Module | None, start: Start | None) -> bool:
    """Whether only the caller uses the output of an edge, so that the caller may write into the output.

    operation: the only operation that the edge runs, or None if unknown. start: the part that the operation shares
    with other operations, or None.
    """
    if operation is None or (start is not None and start.whole):
        return False
    if isinstance(edge, Choice) and edge.gate is not None and edge.gate.hard is not None:
        return forgets_its_output(operation) and not edge.gate.hard.keeps_output(operation)
    return forgets_its_output(operation)


def forgets_its_output(operation: nn.Module) -> bool:
    """Whether an operation neither keeps its output nor passes the output to a hook."""
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
    """The sum of one or more terms. Writes the sum into the first `owned` term, if there is one."""
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
