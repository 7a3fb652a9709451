"""The global random generators, as a checkpoint holds them, and as passes that are compared share them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from nas import processes


def random_state() -> dict[str, Any]:
    """Of Python, NumPy, and torch on the CPU and on every GPU; tensors and plain values only."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()  # type: ignore[misc]  # noqa: NPY002  the global one
    return {
        "python": [version, list(words), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned; of GPUs as many as there are now.

    Several processes draw alike: each gives its GPU the state that the first one's had.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if processes.world() > 1:
        if state["cuda"] and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state["cuda"][0], torch.cuda.current_device())
        return
    for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, index)


class Randomness:
    """What torch's generators give from now on, on the CPU and on the device if that is a GPU, to be had again."""

    def __init__(self, device: torch.device) -> None:
        self._gpus = [device] if device.type == "cuda" else []
        self._states = [torch.cuda.get_rng_state(gpu) for gpu in self._gpus]
        self._state = torch.get_rng_state()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, they give the same as then; afterwards they go on from where they were before."""
        with torch.random.fork_rng(devices=self._gpus):
            torch.set_rng_state(self._state)
            for gpu, state in zip(self._gpus, self._states, strict=True):
                torch.cuda.set_rng_state(state, gpu)
            yield
