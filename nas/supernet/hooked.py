"""Hooks on modules. Those on a choice are kept in the derived network, where they see the same inputs and outputs."""

from typing import Any

from torch import nn

# The attributes in which torch stores the forward and backward hooks of a module.
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)
CALLED = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Hooked(nn.Module):
    """Runs a module under the hooks of another module. Both share the hooks, so a handle removes them from both."""

    def __init__(self, module: nn.Module, *, hooks_of: nn.Module) -> None:
        super().__init__()
        self.module = module
        for name in HOOKS:
            self.__dict__[name] = hooks_of.__dict__[name]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)


def with_hooks_of(other: nn.Module, module: nn.Module) -> nn.Module:
    """Returns the module, wrapped in `Hooked` if `other` has hooks."""
    return Hooked(module, hooks_of=other) if any(vars(other)[name] for name in CALLED) else module


def is_watched(module: nn.Module) -> bool:
    """Whether a call of the module runs more than the forward method of its class: hooks, a compiled version, or a
    forward of the module's own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or "forward" in module.__dict__
    )
