"""What makes a command that torchrun has started several times over one command: one output, one error, one directory.

Everywhere else that is nothing, and does not import torch, which takes seconds.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from nas.errors import ConfigError


def started() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def has_restarted() -> bool:
    """Whether torchrun has started the processes anew, as one of them had failed: they are to go on with their run."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def left_at_once() -> Iterator[None]:
    """Around all that a process does: it ends without Python's own clearing up.

    torch leaves threads of gloo behind (pytorch/pytorch#179291), which during that abort the process now and then, so
    that a job which is done counts as failed. An error that is not ours ends as any other.
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
    """Inside, the processes work together, and only the first one's standard output shows."""
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
    """Whether an error is this process's to tell: it is the first of all to ask. The others make the same mistake, or
    fail of its absence."""
    if started() == 1:
        return True
    from nas.runtime import distributed

    try:
        return distributed.first_to("tell an error")
    except RuntimeError:  # torchrun, which holds what they share, is gone: killed by a signal to the whole group
        return distributed.first()


def common(directory: Path, own: Callable[[Path], Path]) -> Path:
    """The run's directory, that of the first process: each has made one, named by its own clock.

    own: what that process makes of it.
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
    """What the first process says, for what others may see later."""
    if started() == 1:
        return value
    from nas.runtime import distributed

    return distributed.agreed(str(value)) == str(True)


def refuse_several(command: str) -> None:
    """Raises ConfigError if there are several processes, for a command that is the work of one."""
    if started() > 1:
        raise ConfigError(
            f"{command} works in one process, got {started()}", fix="start it without torchrun, as plain " + command
        )
