"""What a module computes in eval mode, in terms of its parts, as a graph of torch.fx.

Python's own control flow is followed while tracing, and does not show: loops over cells are unrolled, what only
training does is gone.
"""

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from nas.formats.source.parts import CONTAINERS, Part, Parts
from nas.formats.source.unsupported import UnsupportedError


class PartTracer(fx.Tracer):  # type: ignore[misc]
    """Stops at modules that are written as calls of their own; `inputs` are the arguments that become tensors."""

    def __init__(self, found: Parts, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self._found = found
        self._inputs = inputs

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._found.of[m] in (Part.LAYER, Part.CLASS) or isinstance(m, CONTAINERS)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        # fx itself would make a tensor of every parameter, of those with defaults that nobody set, too.
        named = {name: self.create_proxy("placeholder", name, (), {}) for name in self._inputs}
        return lambda root: root_fn(root, **named), [self.root]


def trace(module: nn.Module, found: Parts) -> fx.Graph:
    """Raises UnsupportedError where the module's forward looks at the values or sizes of its tensors to decide."""
    try:
        return PartTracer(found, found.inputs[module]).trace(module)
    except Exception as error:  # whatever a forward makes of inputs that have no values
        reason = " ".join(str(error).split())
        raise UnsupportedError(
            f"the forward of {type(module).__name__} cannot be traced ({type(error).__name__}: {reason:.200})"
        ) from error
