"""Signals that ask a run to stop: the run finishes its step, saves, and ends so that it can be resumed."""

import contextlib
import os
import signal
import stat
from types import FrameType, TracebackType
from typing import Any, Self

# Sent by a person (Ctrl-C, a closed terminal), an operating system and batch systems such as Slurm.
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
]


class Interrupted(BaseException):
    """A signal has stopped the run, which can be resumed. Not an Exception, like KeyboardInterrupt."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.received = received


class Interruption:
    """A context that only keeps the first signal, as `received`. A second Ctrl-C raises KeyboardInterrupt at once.

    With several processes a second Ctrl-C does not: each process may get one from the terminal and one from torchrun or
    a launcher.
    When the context ends, the handler that was set before is called with the signal. Submitit's handler, for example,
    puts the job into the queue again. With nested contexts, the outermost one calls it.
    Signals with a handler that Python does not know, e.g. of faulthandler, are not handled here. Nor is SIGHUP if it is
    ignored, e.g. by nohup. Outside of the main thread Python handles no signals, and `received` stays None.
    """

    def __init__(self, *, several: bool = False) -> None:
        self.taken = SIGNALS
        self._several = several
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT and not self._several:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
        if number == getattr(signal, "SIGHUP", None):
            leave_terminal()

    def __enter__(self) -> Self:
        for number in self.taken:
            before = signal.getsignal(number)
            ignored = before is signal.SIG_IGN and number == getattr(signal, "SIGHUP", None)
            if before is None or ignored:
                continue
            try:
                signal.signal(number, self._note)
            except ValueError:  # not the main thread
                break
            self._before[number] = before
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.received is None:
            return
        before = self._before.get(self.received)
        outer = getattr(before, "__self__", None)
        if isinstance(outer, Interruption):
            outer.received = outer.received or self.received
        elif callable(before) and before is not signal.default_int_handler:
            before(self.received, None)


class AtOnce(Interruption):
    """A context around a whole run. Outside of an `Interruption` in it, the first signal raises Interrupted.

    The run then cleans up. Later signals are ignored, because they would stop the cleaning up.
    control_c: also handle Ctrl-C, for which Python raises KeyboardInterrupt.
    """

    def __init__(self, *, control_c: bool = False) -> None:
        super().__init__(several=True)
        self.taken = [number for number in SIGNALS if control_c or number != signal.SIGINT]

    def _note(self, number: int, frame: FrameType | None) -> None:
        first = self.received is None
        super()._note(number, frame)
        if first:
            raise Interrupted(signal.Signals(number))


def leave_terminal() -> None:
    """Redirects output from a closed terminal to the null device, because each write would be an error."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
