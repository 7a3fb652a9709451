"""Exit codes of the commands, and errors of one line on standard error."""

import contextlib
import os
import sys
from typing import NoReturn

from nas.cli import parallel, torchrun
from nas.untrusted.escaping import printable

FAILED = 1  # what Python itself exits with after a traceback
USER_ERROR = 2
# 128 + SIGINT, what a shell reports for Ctrl-C. Likewise 143 for SIGTERM, 138 for SIGUSR1, 140 for SIGUSR2 and 129 for
# SIGHUP.
INTERRUPTED = 130
NOTHING_DONE = "interrupted before anything was done"


def shown_anywhere() -> None:
    """Lets standard output replace characters that its encoding lacks. So a table cannot end a run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not so where a caller collects what is printed
            stream.reconfigure(errors="backslashreplace")


def enough() -> NoReturn:
    """Ends quietly when the reader of the output has closed it, as `head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it flushes
    sys.exit(FAILED)


def fail(message: str, code: int) -> NoReturn:
    tell(message)
    sys.exit(code)


def stopped(message: str, code: int) -> NoReturn:
    """Ends the process after a signal, also when the process is one of several jobs side by side."""
    tell(message)
    if parallel.in_job_process():
        raise parallel.JobStoppedError(code)
    sys.exit(code)


def tell(message: str) -> None:
    if torchrun.tells_errors():
        with contextlib.suppress(OSError):  # the terminal is closed
            print(f"error: {printable(message)}", file=sys.stderr, flush=True)
