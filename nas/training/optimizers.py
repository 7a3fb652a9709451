"""Optimisers from what makes them: how they compute, and which are refused."""

import functools
import inspect
import sys
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nas.errors import ConfigError
from nas.runtime import distributed
from nas.settings.building import complete
from nas.training.schedule import keep_ratios

# Arguments that say how an optimiser computes: who gives one of them decides instead of us.
WAYS = ("fused", "foreach", "differentiable", "capturable")


def build_optimizer(make: Callable[..., Any], network: nn.Module, *, device: torch.device, setting: str) -> Optimizer:
    """The optimiser of a network's parameters.

    make: a class or a partial of it. setting: its name, for messages.
    The optimiser is fused where it can be, unless `make` says how it computes: the same numbers in one pass over them,
    which torch has for real ones only.
    Raises ConfigError for an optimiser whose steps need more than gradients.
    """
    # A list, as what a person writes may go through it once for each group.
    arguments: dict[str, Any] = {"params": list(network.parameters())}
    given = make.keywords if isinstance(make, functools.partial) else {}
    fuses = device.type in ("cpu", "cuda") and not given.get("dampening")  # see begin_momentum
    fuses &= not any(parameter.is_complex() for parameter in network.parameters())
    fuses &= all(given.get(name) is None for name in WAYS)
    if fuses and has_argument(make, "fused"):
        arguments["fused"] = True
    optimizer: Optimizer = complete(make, **arguments)
    check_optimizer(optimizer, setting=setting, device=device.type)
    for group in optimizer.param_groups:  # numbers of NumPy, which no checkpoint can hold, as Python's
        group.update({name: plain(one) for name, one in group.items() if name != "params"})
    check_parameters(optimizer, network, setting=setting)
    keep_ratios(optimizer)
    return optimizer


def plain(value: Any) -> Any:
    """Returns numbers of NumPy as Python's, those in a tuple or a list too, as the betas of Adam."""
    if type(value) in (tuple, list):
        return type(value)(map(plain, value))
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, bool | int | float) or not isinstance(value, Real) else float(value)


def check_optimizer(optimizer: Any, *, setting: str, device: str) -> None:
    """Raises ConfigError, naming the setting, for what no step of ours can be taken with."""
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"{setting} makes a {type(optimizer).__name__}, expected a torch.optim.Optimizer",
            fix=f"name one as {setting}._target_, e.g. torch.optim.SGD",
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"{setting} makes a {type(optimizer).__name__}, whose step computes the loss several times by a closure, "
            "expected one that steps by the gradients of one batch",
            fix="choose another optimiser, e.g. torch.optim.SGD or torch.optim.AdamW",
        )
    for group in optimizer.param_groups:
        if not isinstance(rate := group.get("lr"), Real | Tensor):
            raise ConfigError(
                f"{setting} makes a {type(optimizer).__name__} "
                + ("without a learning rate" if rate is None else f"whose learning rate is a {type(rate).__name__}")
                + ", expected a number as lr of each parameter group, which the schedule changes",
                fix=f"give it one, as {setting}.lr, or let its groups have the entry 'lr'",
            )
    if device != "cuda" and any(group.get("capturable") for group in optimizer.param_groups):
        raise ConfigError(
            f"{setting}.capturable=true is for CUDA graphs, got the device {device}",
            fix=f"leave {setting}.capturable out",
        )


def check_parameters(optimizer: Optimizer, network: nn.Module, *, setting: str) -> None:
    """Raises ConfigError if the optimiser has parameters of something else than the network. Prints a warning if it
    leaves out parameters of the network that require a gradient, as these do not learn."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if held - set(network.parameters()):
        raise ConfigError(
            f"{setting} makes a {type(optimizer).__name__} of other parameters than those it is given",
            fix="build it from the argument params",
        )
    left_out = [name for name, one in network.named_parameters() if one.requires_grad and one not in held]
    if left_out and distributed.first():
        print(
            f"warning: the {type(optimizer).__name__} that {setting} makes leaves out {len(left_out)} parameters, "
            f"which will not learn: {left_out[0]}" + (", ..." if len(left_out) > 1 else ""),
            file=sys.stderr,
        )


def has_argument(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # some functions that are not written in Python
        return False
