"""Computes once the first module that several operations with the same source node have in common.

Most operations of published spaces begin with a ReLU, and the next convolution keeps the ReLU's result for the backward
pass. Pooling computes the same on all edges of a source. Sharing the results saves time and memory.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nas.supernet.entanglement import CentreConv2d
from nas.supernet.hooked import is_watched

# type -> the attributes that determine the output, for modules without weights and without randomness.
SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: (),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
}


# Modules that may follow a shared module: none of them writes into its input.
FOLLOWING = (nn.Conv2d, CentreConv2d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Start:
    """The first module of an operation.

    kind: equal for modules that compute the same function. rest: runs the other modules of the operation. whole:
    whether `module` is the whole operation; `rest` is the identity then.
    """

    kind: Hashable
    module: nn.Module
    rest: Callable[[Tensor], Tensor]
    whole: bool


def shared_starts(
    operations: Sequence[Sequence[nn.Module | None]], plan: Sequence[tuple[list[int], bool]]
) -> dict[tuple[int, int], Start]:
    """(row, source) -> the start of the operation on this edge, if another operation of the source starts the same way.

    operations: the operations of a cell's edges, [row][source]. plan: the edges that run, see
    `nas.spaces.dead_edges.living`.
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
    """The start of an operation. Returns None if the first module cannot be shared, or if hooks see its input."""
    sequence = isinstance(operation, nn.Sequential) and type(operation).forward is nn.Sequential.forward
    module = operation._modules.get("0") if sequence else operation
    settings = None if module is None else SETTINGS.get(type(module))
    if module is None or settings is None or is_watched(module) or (sequence and is_watched(operation)):
        return None
    if isinstance(module, nn.ReLU) and module.inplace:
        return None
    kind = type(module), *(getattr(module, name) for name in settings)
    if not isinstance(operation, nn.Sequential) or len(operation) == 1:
        return Start(kind, module, unchanged, whole=True)
    if type(operation[1]) not in FOLLOWING:
        return None
    return Start(kind, module, Rest(operation), whole=False)


def unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Rest:
    """Runs all modules of a sequence but the first, on the output of the first."""

    sequence: nn.Sequential

    def __call__(self, x: Tensor) -> Tensor:
        _, *modules = self.sequence  # not children(), which passes over a module's second place
        for module in modules:
            x = module(x)
        return x
