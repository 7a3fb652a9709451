"""Starts a script or module in two processes, as a user would."""

import os
import subprocess
import sys
from pathlib import Path

import nas

PATHS = (Path(nas.__file__).parents[1], Path(__file__).parent)  # this checkout, not an installed package; and the tests


def torchrun(*arguments, cwd=None, gpus=False):
    """Runs torchrun with two processes. Returns exit code, output and errors. Raises if they hang.

    arguments: of torchrun, after the number of processes.
    """
    environment = {
        **os.environ,
        **({} if gpus else {"CUDA_VISIBLE_DEVICES": ""}),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join(map(str, PATHS)),
    }
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
