"""What operations that leave one node have in common at their beginning, computed once for all of them.

Most operations of published spaces begin with a ReLU, whose result the convolution after it keeps for the backward
pass; pooling is the same on whatever edge. Sharing them saves memory as well.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nas.spaces.dead_edges import is_watched

# type -> all that decides what it computes, for modules that have neither weights nor randomness.
SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: (),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
}


# What may follow: nothing that writes into what it is given.
FOLLOWING = (nn.Conv2d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Start:
    """How an operation begins: with `module`, equal in `kind` to others that compute the same; `rest` is what is left
    to be done after it, nothing if it is the `whole` operation."""

    kind: Hashable
    module: nn.Module
    rest: Callable[[Tensor], Tensor]
    whole: bool


def shared_starts(
    operations: Sequence[Sequence[nn.Module | None]], plan: Sequence[tuple[list[int], bool]]
) -> dict[tuple[int, int], Start]:
    """(row, source) -> how the operation on that edge begins, for all that begin like another one of the same source.

    operations: of a cell's edges, [row][source]; plan: which of them run, see `nas.spaces.dead_edges`.
    """
    leaving: dict[tuple[int, Hashable], list[tuple[int, Start]]] = {}
    for row, (sources, needed) in enumerate(plan):
        for source in sources if needed else ():
            operation = operations[row][source]
            if operation is not None and (start := start_of(operation)) is not None:
                leaving.setdefault((source, start.kind), []).append((row, start))
    return {
        (row, source): start for (source, _), several in leaving.items() if len(several) > 1 for row, start in several
    }


def start_of(operation: nn.Module) -> Start | None:
    """None for what begins otherwise, or where somebody is told, by a hook, what goes into it."""
    sequence = isinstance(operation, nn.Sequential) and type(operation).forward is nn.Sequential.forward
    module = operation._modules.get("0") if sequence else operation
    settings = None if module is None else SETTINGS.get(type(module))
    if module is None or settings is None or is_watched(module) or (sequence and is_watched(operation)):
        return None
    if isinstance(module, nn.ReLU) and module.inplace:
        return None
    kind = type(module), *(getattr(module, name) for name in settings)
    if not sequence or len(operation._modules) == 1:
        return Start(kind, module, unchanged, whole=True)
    if type(operation._modules.get("1")) not in FOLLOWING:
        return None
    return Start(kind, module, Rest(operation), whole=False)


def unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Rest:
    """What a sequence makes of what its first module gave."""

    sequence: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        modules = iter(self.sequence.children())
        next(modules)
        for module in modules:
            x = module(x)
        return x
