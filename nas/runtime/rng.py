"""Saves and restores the states of the global random generators.

Checkpoints hold the states, and forward passes that are compared share them. Layers draw from these generators:
dropout, drop path, noise. Each of several processes has its own examples, so its layers draw their own numbers, see
`seed_layers`. Gates and batches must be the same in all processes, and come from separate generators.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.runtime import distributed


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy, and torch on the CPU and on every GPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the global generator, which user code may draw from
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The states of Python, NumPy, and torch on the CPU and on every GPU, as tensors and plain values.

    Several processes call it together, and get the state of the first, with the other states, in order, as ``others``.
    """
    first, *others = distributed.of_all(own_state())
    return first | {"others": others} if others else first


def own_state() -> dict[str, Any]:
    """The state of this process."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()  # type: ignore[misc]  # noqa: NPY002  the global generator
    return {
        "python": [version, list(words), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": gpu_states(),
    }


@contextmanager
def put_back() -> Iterator[None]:
    """Puts the state of this process back at its end: building a network draws numbers, which a program may not expect
    of what only loads or scores one."""
    state = own_state()
    try:
        yield
    finally:
        set_own_state(state)


def gpu_states() -> list[Tensor]:
    """The state of every GPU. Each of several processes has one GPU, and returns its state only."""
    if not torch.cuda.is_initialized():
        return []
    if distributed.world() > 1:
        return [torch.cuda.get_rng_state(torch.cuda.current_device())]
    return torch.cuda.get_rng_state_all()


def set_random_state(state: dict[str, Any]) -> None:
    """Restores a state that `random_state` returned. Ignores the states of GPUs that no longer exist.

    Each of several processes takes its own state. A process without a saved state, because fewer processes saved it, is
    seeded from the first state and its own number, so that it draws other numbers than the first process.
    """
    number = distributed.share().index
    others = state.get("others", [])
    if number == 0:
        set_own_state(state)
    elif number <= len(others):
        set_own_state(others[number - 1])
    else:
        drawn = state["torch"].numpy().tobytes() + str(number).encode()
        seed_everything(int.from_bytes(hashlib.blake2b(drawn, digest_size=7).digest()))


def set_own_state(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if distributed.world() > 1:
        if state["cuda"] and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state["cuda"][0], torch.cuda.current_device())
        return
    for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, index)


class Randomness:
    """Saves the state of torch's generators, so that later code can draw the same numbers again.

    Covers the CPU, and the device if the device is a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpus = [device] if device.type == "cuda" else []
        self._states = [torch.cuda.get_rng_state(gpu) for gpu in self._gpus]
        self._state = torch.get_rng_state()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, the generators repeat the numbers from the saved state. Afterwards they continue as before."""
        with torch.random.fork_rng(devices=self._gpus):
            torch.set_rng_state(self._state)
            for gpu, state in zip(self._gpus, self._states, strict=True):
                torch.cuda.set_rng_state(state, gpu)
            yield
