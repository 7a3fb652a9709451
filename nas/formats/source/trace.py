"""Traces what a module computes in eval mode, in terms of its parts, as a graph of torch.fx.

Tracing follows Python's control flow, which the graph does not show: loops over cells are unrolled, and what only
training does is gone.
"""

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from nas.formats.source.parts import CONTAINERS, Part, Parts
from nas.formats.source.unsupported import UnsupportedError


class PartTracer(fx.Tracer):  # type: ignore[misc]
    """Stops at modules that are written as calls. `inputs` are the names of the arguments that become tensors."""

    def __init__(self, found: Parts, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self._found = found
        self._inputs = inputs

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._found.of[m] in (Part.LAYER, Part.CLASS) or isinstance(m, CONTAINERS)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # Not traced, as it may call what is no function of torch: StochasticDepth of torchvision does.
        return args[0] if m in self._found.same else super().call_module(m, forward, args, kwargs)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        # torch.fx would turn every parameter into a tensor, including parameters with default values.
        named = {name: self.create_proxy("placeholder", name, (), {}) for name in self._inputs}
        return lambda root: root_fn(root, **named), [self.root]


def trace(module: nn.Module, found: Parts) -> fx.Graph:
    """Returns the graph. Raises UnsupportedError if the forward branches on values or sizes of its tensors."""
    try:
        return PartTracer(found, found.inputs[module]).trace(module)
    except Exception as error:  # a forward may raise any error for inputs without values
        reason = " ".join(str(error).split())
        raise UnsupportedError(
            f"the forward of {type(module).__name__} cannot be traced ({type(error).__name__}: {reason:.200})"
        ) from error
