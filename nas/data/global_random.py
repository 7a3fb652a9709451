"""Lets code that draws from torch's global generator draw from a given generator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


@contextmanager
def drawing_from(generator: Generator) -> Iterator[None]:
    """Seeds torch's global CPU generator inside, with one number drawn from `generator`, which is on the CPU.

    Restores the global generator afterwards. Nothing else in a run depends on what is drawn inside.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the GPUs too.
        torch.default_generator.manual_seed(seed)
        yield
