"""The random generators that models, samplers, losses and augmentations hold: a checkpoint saves their states."""

import json
import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from nas.runtime import distributed
from nas.training.held_objects import held

KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class OwnGenerators:
    """The generators in some objects. objects: name -> object, None for none."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._objects = objects

    def found(self) -> dict[str, Any]:
        """Returns place -> generator, as the objects are now: a step may replace a generator, or make it."""
        return {f"{name}.{place}": one for name, value in self._objects.items() for place, one in held(value, KINDS)}

    def state_dict(self) -> dict[str, Any]:
        """Returns place -> state: a tensor, or text for generators that are not torch's."""
        return {place: state_of(one) for place, one in self.found().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the states of generators that are at the same places. Prints a warning if a generator is not there,
        e.g. as a step makes it: it would draw its first numbers again."""
        found = self.put(state)
        if (lost := [place for place in state if place not in found]) and distributed.first():
            print(
                f"warning: the random generator {lost[0]} of the checkpoint is not there, so it would draw its first "
                "numbers again, and the run ends with other bits: make it in the constructor, not in a step",
                file=sys.stderr,
            )

    def put(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Gives the generators that are there now the states of their places. Returns place -> generator."""
        found = self.found()
        for place, one in found.items():
            if place in state and isinstance(state[place], torch.Tensor) == isinstance(one, torch.Generator):
                set_state(one, state[place])
        return found


def state_of(generator: Any) -> torch.Tensor | str:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return json.dumps(generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return json.dumps(generator.get_state(legacy=False), default=np.ndarray.tolist)
    return json.dumps(generator.bit_generator.state, default=np.ndarray.tolist)


def set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
        return
    known = json.loads(state)
    if isinstance(generator, random.Random):
        version, words, gauss = known
        generator.setstate((version, tuple(words), gauss))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(known)
    else:
        generator.bit_generator.state = known
