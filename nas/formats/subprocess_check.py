"""Runs the code that loads artefacts in a fresh process, as users will."""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nas.errors import OutputError
from nas.storage import disk


def run(
    alone: Mapping[str, str],
    with_project: Mapping[str, str],
    *,
    batches: Sequence[Mapping[str, Tensor]],
    directory: Path,
) -> dict[str, list[Tensor] | str]:
    """Returns name -> the value of y after its code ran, for each batch of variables; or the error as text.

    alone: name -> code that runs where this project cannot be imported. with_project: name -> code that runs where it
    can. directory: the working directory of the process. One process runs all code, because importing torch takes
    seconds.
    Raises OutputError if the process fails.
    """
    code = Path(__file__).with_name("subprocess_main.py").read_text(encoding="utf-8")
    # The new process can import what this one can: packages may be installed anywhere.
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
    with tempfile.TemporaryDirectory(prefix="nas-fresh-") as exchange:
        source, target = Path(exchange, "given"), Path(exchange, "results")
        jobs = {False: dict(alone), True: dict(with_project)}
        # Not by torch itself, which aborts the process when the disk is full.
        given = io.BytesIO()
        torch.save(
            {"threads": torch.get_num_threads(), "batches": [dict(batch) for batch in batches], "jobs": jobs}, given
        )
        source.write_bytes(given.getvalue())
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, source, target],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # its messages may have the encoding of the locale
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            if (refusal := disk.refusal_in(last)) is not None:
                raise disk.refused(refusal, Path(exchange), directory)
            raise OutputError(
                f"the process that checks the exported files stopped ({last})",
                fix="check whether memory ran out; nothing was written",
            )
        results: dict[str, list[Tensor] | str] = torch.load(target, weights_only=True)
    return results
