"""Hooks on a choice, which see what the choice is given and returns, also in the network that is derived from it."""

from typing import Any

from torch import nn

# Attributes of a module that say what is called around its forward and backward pass.
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
    """Runs a module under the hooks of another one. They are the same hooks: a handle removes them here as well."""

    def __init__(self, module: nn.Module, *, hooks_of: nn.Module) -> None:
        super().__init__()
        self.module = module
        for name in HOOKS:
            self.__dict__[name] = hooks_of.__dict__[name]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)


def with_hooks_of(other: nn.Module, module: nn.Module) -> nn.Module:
    """The module, under the hooks of the other one if that has any."""
    return Hooked(module, hooks_of=other) if any(vars(other)[name] for name in CALLED) else module
