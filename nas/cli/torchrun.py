"""Makes the processes that torchrun starts act as one command: one output, one error, one directory.

Outside torchrun these functions do nothing, and do not import torch, which takes seconds.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from nas.errors import ConfigError


def started() -> int:
    """Returns the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def has_restarted() -> bool:
    """Says whether torchrun has restarted the processes after one had failed. They then continue their run."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def left_at_once() -> Iterator[None]:
    """A context for all that a process does. The process ends without Python's own clean-up.

    torch leaves threads of gloo behind (pytorch/pytorch#179291). During the clean-up they sometimes abort the process,
    and a finished job would count as failed. An exception that is not from this project ends the process as usual.
    """
    if started() == 1:
        yield
        return
    try:
        yield
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def one_voice() -> Iterator[None]:
    """A context in which the processes work together and only the first one writes to standard output."""
    if started() == 1:
        yield
        return
    from nas.runtime import distributed

    with (
        distributed.joined(),
        open(os.devnull, "w") as nowhere,
        redirect_stdout(sys.stdout if distributed.first() else nowhere),
    ):
        yield


def tells_errors() -> bool:
    """Says whether this process prints an error: the first one that asks does. The others fail of the same cause."""
    if started() == 1:
        return True
    from nas.runtime import distributed

    try:
        return distributed.first_to("tell an error")
    except RuntimeError:  # torchrun, which holds what they share, is gone: killed by a signal to the whole group
        return distributed.first()


def common(directory: Path, own: Callable[[Path], Path]) -> Path:
    """Returns the directory of the first process. Each process has made its own, named by its own clock.

    own: the directory that this process made.
    """
    if started() == 1:
        return own(directory)
    from nas.runtime import distributed

    agreed = Path(distributed.agreed(str(own(directory) if distributed.first() else directory)))
    if agreed != directory:
        with suppress(OSError):  # not empty, so not made by this process
            directory.rmdir()
    return agreed


def agreed(value: bool) -> bool:
    """Returns the value of the first process, for what may look different to the others a moment later."""
    if started() == 1:
        return value
    from nas.runtime import distributed

    return distributed.agreed(str(value)) == str(True)


def refuse_several(command: str) -> None:
    """Raises ConfigError if several processes were started for a command that runs in one."""
    if started() > 1:
        raise ConfigError(
            f"{command} works in one process, got {started()}", fix="start it without torchrun, as plain " + command
        )
