"""Limits the size of a network that is built from an untrusted description, by the size of its weights."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.nn.parameter import is_lazy

from nas.errors import CheckpointError, NasError

# A network is built with all candidates of its choices, of which a genotype keeps few: up to 8 times as many modules in
# the spaces that ship, and 20 times as many numbers where it keeps those without weights.
MODULES, MODULES_PER_TENSOR = 5_000, 50  # of which a thousand take a quarter of a second
NUMBERS, NUMBERS_PER_NUMBER = 20_000_000, 200


@contextmanager
def as_large_as(weights: Any, *, source: object) -> Iterator[None]:
    """A context that raises CheckpointError once the modules built in it are far larger than the weights.

    weights: of a network, by name, as read from `source`.
    """
    tensors = [one for one in weights.values() if isinstance(one, Tensor)] if isinstance(weights, dict) else []
    error = CheckpointError(
        f"{source} describes a network that is far larger than its weights", fix="give it as it was written"
    )
    modules = MODULES + MODULES_PER_TENSOR * len(tensors)
    numbers = NUMBERS + NUMBERS_PER_NUMBER * sum(tensor.numel() for tensor in tensors)
    with at_most(modules=modules, numbers=numbers, error=error):
        yield


@contextmanager
def at_most(*, modules: int, numbers: int, error: NasError) -> Iterator[None]:
    """A context in which building stops with `error` once there are more modules, or parameters of more numbers, or
    once there is no memory for them."""
    modules_left, numbers_left = modules, numbers
    thread = threading.get_ident()  # other threads may build what they want

    def count(*, modules: int = 0, numbers: int = 0) -> None:
        nonlocal modules_left, numbers_left
        if threading.get_ident() != thread:
            return
        modules_left -= modules
        numbers_left -= numbers
        if modules_left < 0 or numbers_left < 0:
            raise error

    def on_module(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        count(modules=1)

    def on_parameter(parent: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        # Called before the parameter's memory is written: the system allocates memory only then.
        count(numbers=0 if parameter is None or is_lazy(parameter) else parameter.numel())

    try:
        with (
            registration.register_module_module_registration_hook(on_module),
            registration.register_module_parameter_registration_hook(on_parameter),
        ):
            yield
    except RuntimeError as refused:  # of torch's allocator, which knows no other error
        if "allocate memory" not in str(refused):
            raise
        raise error from refused
