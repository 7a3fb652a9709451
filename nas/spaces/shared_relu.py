"""One ReLU for all operations that leave a node and begin with one, where each would compute the same.

Most operations of published spaces begin with a ReLU. Its result is what the convolution after it keeps for the
backward pass, so that sharing it saves memory as well.
"""

import functools
from collections.abc import Callable, Sequence

from torch import Tensor, nn


def sharing(
    operations: Sequence[Sequence[nn.Module | None]], plan: Sequence[tuple[list[int], bool]]
) -> dict[tuple[int, int], Callable[[Tensor], Tensor]]:
    """(row, source) -> what is left of the operation on that edge once the source's ReLU is there, for all edges of
    sources that several such operations leave.

    operations: of a cell's edges, [row][source]; plan: which of them run, see `nas.spaces.living`.
    """
    leaving: dict[int, list[tuple[int, nn.Sequential]]] = {}
    for row, (sources, needed) in enumerate(plan):
        for source in sources if needed else ():
            operation = operations[row][source]
            if isinstance(operation, nn.Sequential) and begins_with_relu(operation):
                leaving.setdefault(source, []).append((row, operation))
    return {
        (row, source): functools.partial(after_first, operation)
        for source, several in leaving.items()
        if len(several) > 1
        for row, operation in several
    }


def begins_with_relu(operation: nn.Sequential) -> bool:
    """Whether it is a plain sequence that does, and nobody is told, by a hook, what goes into it."""
    if type(operation).forward is not nn.Sequential.forward:
        return False
    first = operation._modules.get("0")
    return type(first) is nn.ReLU and not first.inplace and not (is_watched(operation) or is_watched(first))


def is_watched(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
    )


def after_first(sequence: nn.Sequential, x: Tensor) -> Tensor:
    """What a sequence makes of what its first module gave."""
    modules = iter(sequence)
    next(modules)
    for module in modules:
        x = module(x)
    return x
