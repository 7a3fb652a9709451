"""Finds numbers that a training step changes and no checkpoint holds: counters and averages in plain attributes."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nas.runtime import distributed

NAMED = 3


class UnsavedNumbers:
    """The attributes of some objects that are numbers, at construction.

    objects: name for the message -> object. Of a module, the modules in it are looked at as well. Objects other than
    modules and optimisers that have a `state_dict` save what they need.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._objects = {name: one for name, one in objects.items() if not saves_itself(one)}
        self._before = dict(numbers(self._objects))

    def say_which_changed(self) -> None:
        """Prints a warning of the numbers that have changed since the construction."""
        found = [place for place, value in numbers(self._objects) if self._before.get(place, value) != value]
        if found and distributed.first():
            more = ", ..." if len(found) > NAMED else ""
            print(
                f"warning: a training step changes {', '.join(found[:NAMED])}{more}, which no checkpoint holds: a run "
                "that is resumed would begin with the first value again, and the next run in this process with the "
                "last; keep such numbers in buffers of modules or in the state of an optimiser, or give a sampler, "
                "regulariser or task state_dict and load_state_dict",
                file=sys.stderr,
            )


def saves_itself(one: Any) -> bool:
    return not isinstance(one, nn.Module | Optimizer) and callable(getattr(one, "state_dict", None))


def numbers(objects: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Yields (place, number) for the attributes that are numbers, but for those of modules that save more than their
    parameters and buffers."""
    for name, one in objects.items():
        parts = one.named_modules() if isinstance(one, nn.Module) else [("", one)]
        for path, part in parts:
            if isinstance(part, nn.Module) and type(part).get_extra_state is not nn.Module.get_extra_state:
                continue
            for attribute, value in getattr(part, "__dict__", {}).items():
                if type(value) in (int, float):
                    yield ".".join(filter(None, (name, path, attribute))), value
