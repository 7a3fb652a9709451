"""Several seeds on one device at once."""

import os
import subprocess
import sys

import pytest
import torch
from cli.conftest import TINY

from nas.storage import checkpoint_file

SEEDS = (0, 1, 2, 3)


@pytest.mark.long
def test_seeds_side_by_side_have_the_bits_of_each_alone(tmp_path):
    """By joblib, whose processes share the device."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")

    def search(*arguments):
        command = [sys.executable, "-m", "nas.cli.search", *arguments, *TINY, "runtime.threads=1"]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    search(
        *("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=4", f"seed={','.join(map(str, SEEDS))}"),
        *("hydra.sweep.dir=together", "hydra.sweep.subdir=${hydra.job.num}"),
    )
    seen = []
    for seed in SEEDS:
        search(f"seed={seed}", f"hydra.run.dir=alone/{seed}")
        one, two = (
            checkpoint_file.load(tmp_path / where / str(seed) / "search" / "checkpoint.pt", "search")
            for where in ("together", "alone")
        )
        for part in ("arch", "supernet"):
            assert one[part].keys() == two[part].keys()
            assert all(torch.equal(value, two[part][name]) for name, value in one[part].items()), (seed, part)
        seen.append(next(iter(one["arch"].values())))
    assert not torch.equal(seen[0], seen[1])
