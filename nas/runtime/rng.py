"""The global random generators, as a checkpoint holds them, and as passes that are compared share them.

Layers draw from them: dropout, drop path, noise. Each of several processes has its own examples, so its layers draw
numbers of their own, see `seed_layers`. What all processes have to draw alike, the gates and the batches,
comes from generators of its own.
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
    """Seed Python, NumPy, and torch on the CPU and on every GPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the global one, which a user's own code may draw from
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Of Python, NumPy, and torch on the CPU and on every GPU; tensors and plain values only.

    Of several processes, which call it together, the first one's, and under ``others`` those of the others in order.
    """
    first, *others = distributed.of_all(own_state())
    return first | {"others": others} if others else first


def own_state() -> dict[str, Any]:
    """Of this process."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()  # type: ignore[misc]  # noqa: NPY002  the global one
    return {
        "python": [version, list(words), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": gpu_states(),
    }


def gpu_states() -> list[Tensor]:
    """Of every GPU; of several processes each has one GPU, and that one's."""
    if not torch.cuda.is_initialized():
        return []
    if distributed.world() > 1:
        return [torch.cuda.get_rng_state(torch.cuda.current_device())]
    return torch.cuda.get_rng_state_all()


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned; of GPUs as many as there are now.

    Each of several processes takes its own state. One that had none when the state was taken, as there were fewer
    processes, draws other numbers than the first one, which the first one's state decides.
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
