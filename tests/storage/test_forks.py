"""A lock belongs to one process and not to its forks."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from nas.errors import OutputError
from nas.storage.run_directory import locked


def _descriptors_of(path: str, pipe: Any) -> None:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    pipe.send(found.count(path))
    pipe.recv()


def test_a_forked_process_does_not_hold_the_lock_of_a_run(tmp_path: Path) -> None:
    lock = locked(tmp_path)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_descriptors_of, args=(str(tmp_path), theirs))
    process.start()
    assert ours.recv() == 0
    with pytest.raises(OutputError, match="is being written by another process"):
        locked(tmp_path)  # here it still is
    os.close(lock)  # as the system does when this process is killed
    os.close(locked(tmp_path))  # while the other one lives
    other = os.open(os.devnull, os.O_RDONLY)  # has the number that the lock had, and is left to children
    child = os.fork()
    if child == 0:
        os._exit(0 if os.fstat(other).st_rdev else 1)
    assert os.waitpid(child, 0)[1] == 0
    os.close(other)
    ours.send("leave")
    process.join(10)
