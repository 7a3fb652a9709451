"""Freed memory stays with the process. Counted in page faults, in a fresh process."""

import os
import subprocess
import sys

import pytest

# 50 MB in pieces that malloc would map one by one and trim, taken and freed again and again.
LOOP = """
import resource, sys
import torch
from nas.runtime.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    pieces = [torch.zeros(2**20) for _ in range(12)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_step_maps_no_memory_anew():
    # A fixed threshold: by itself glibc adapts it, and hands back more or less as the heap happens to lie.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17), "OMP_NUM_THREADS": "1"}
    faults = {
        name: int(
            subprocess.run([sys.executable, "-c", LOOP, name], env=environment, capture_output=True, check=True).stdout
        )
        for name in ("keep", "hand back")
    }
    assert faults["keep"] < 60 < faults["hand back"]  # one a piece where pages are huge
