"""For code that draws from torch's global generator: lets it draw from one of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


@contextmanager
def drawing_from(generator: Generator) -> Iterator[None]:
    """Inside, torch's global generator of the CPU gives what one number of `generator`, on the CPU, decides.

    It is put back afterwards, so that nothing else of a run depends on what was drawn here.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the GPUs too.
        torch.default_generator.manual_seed(seed)
        yield
