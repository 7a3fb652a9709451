"""Signals that ask a run to stop: it finishes the step it is in, saves, and ends so that it can be resumed."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

# What a person (Ctrl-C), an operating system and a batch system such as Slurm send.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interrupted(BaseException):
    """The run has stopped by a signal and can be resumed. Not an Exception, like KeyboardInterrupt."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.received = received


class Interruption:
    """A context in which the first signal is only noted, as `received`. A second Ctrl-C interrupts at once, unless
    there are several processes: to those torchrun sends one beside that of the terminal.

    Outside of a process's main thread, where Python takes no signals, nothing is ever received.
    """

    def __init__(self, *, several: bool = False) -> None:
        self._several = several
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT and not self._several:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)

    def __enter__(self) -> Self:
        try:
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        except ValueError:
            self._before = {}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
