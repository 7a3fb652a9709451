"""The checkpoints of a stage: when its state is saved, how many are kept, and where a run stops."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from nas.errors import ConfigError, NasError, WorkerLostError
from nas.runtime import distributed
from nas.storage import checkpoint_file
from nas.storage.signals import Interrupted, Interruption

State = dict[str, Any]

KEEP = 1000  # checkpoints; each is looked for at every save


class Checkpoints(Interruption):
    """Of one stage of a run, at `path`. Inside its context a signal makes the stage save, and then raise Interrupted.

    kind: of the checkpoints. resume: whether there may be some already. writes: whether this process saves; of several,
    which call all of this together, one does, and stops last: a signal to one of them stops all.
    every_steps, every_minutes: when to save within an epoch, None for not at all.
    share: of the time, that saving at the ends of epochs takes at most. Where epochs are too short for that not all of
    them are saved, but the first and the last are. None: all are.
    keep: how many are kept, the newest and those before it.
    """

    def __init__(
        self,
        *,
        path: Path,
        kind: str,
        resume: bool = False,
        writes: bool = True,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        share: float | None = None,
        keep: int = 2,
    ) -> None:
        super().__init__(several=distributed.world() > 1 or multiprocessing.parent_process() is not None)
        for name, value, fix in (
            ("every_steps", every_steps, "null, to save after each epoch alone"),
            ("every_minutes", every_minutes, "null, to save after each epoch alone"),
            ("share", share, "null, to save after each epoch"),
            ("keep", keep, "2"),
        ):
            if value is not None and not value > 0:
                raise ConfigError(f"saving.{name} must be > 0, got {value:g}", fix=f"set saving.{name}={fix}")
        if keep > KEEP:
            raise ConfigError(f"saving.keep must be at most {KEEP}, got {keep}", fix="set saving.keep=2")
        self.path = path
        self._kind = kind
        self._resume = resume
        self._writes = writes
        self._every_steps = every_steps
        self._every_minutes = every_minutes
        self._share = share
        self._keep = keep
        self._steps, self._saved_at = 0, time.monotonic()
        self._saved = False  # what there is now
        self._parent = os.getppid()
        self._raised = False  # that a signal was received
        self._state: Callable[[], State] | None = None  # what there is to save once a step is done
        self._began_at, self._seconds = time.monotonic(), 0.0  # that saving at the ends of epochs has taken since

    def newest(self) -> State | None:
        """What to go on from: the newest state that is whole; None to start from the beginning.

        Names those that are damaged on standard error. Raises CheckpointError if all are.
        """
        if not self._resume:
            return None
        state, problems = checkpoint_file.newest(self.path, self._kind)
        for problem in problems if self._writes else ():
            print(f"warning: {problem}; going on from the one before it", file=sys.stderr)
        return state

    def save(self, state: State) -> None:
        """Raises OutputError when it cannot be written; those that were there are untouched."""
        if self._writes:
            checkpoint_file.save(self.path, self._kind, state, keep=self._keep)
        self._steps, self._saved_at, self._saved = 0, time.monotonic(), True

    def after_step(self, state: Callable[[], State]) -> None:
        """Save if that is due after a step. Raises Interrupted, once saved, if a signal was received."""
        self._steps += 1
        self._saved, self._state = False, state
        minutes = (time.monotonic() - self._saved_at) / 60
        due = (self._every_steps is not None and self._steps >= self._every_steps) or (
            self._every_minutes is not None and minutes >= self._every_minutes
        )
        due, received = self._agreed(due)
        if due or received is not None:
            self.save(state())
            self.stop_if_asked(state)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Saves, too, if a worker was lost between two steps. Several processes do not: the others wait in a step.
        Raises Interrupted if a signal came after the last step, when all is saved."""
        super().__exit__(kind, error, trace)
        if error is None and not self._raised:
            _, received = self._agreed(False)
            if received is not None:
                raise Interrupted(received)
        if isinstance(error, WorkerLostError) and error.between_steps and distributed.world() == 1:
            try:
                if not self._saved and self._state is not None:
                    self.save(self._state())
                error.saved = f"all that was done is saved, resume={self.path.parent.parent} goes on"
            except NasError as failed:  # the worker is what to tell of
                error.saved = f"the last steps cannot be saved ({failed.problem})"

    def after_epoch(self, state: Callable[[], State], *, last: bool) -> None:
        """Save if the share of the time allows it, and after the last epoch."""
        self._saved = False
        started = time.monotonic()
        within = self._share is None or self._seconds <= self._share * (started - self._began_at)
        # The process that saves knows what that took; the others follow it.
        due, _ = self._agreed(last or (self._writes and within))
        if due:
            self.save(state())
            self._seconds += time.monotonic() - started

    def stop_if_asked(self, state: Callable[[], State]) -> None:
        """To be called when all is logged. Raises Interrupted, once saved, if a signal was received."""
        _, received = self._agreed(False)  # together, so that none ends before the one that saves has saved
        if received is not None:
            if not self._saved:
                self.save(state())
                self._agreed(False)
            self._raised = True
            raise Interrupted(received)

    def _agreed(self, due: bool) -> tuple[bool, signal.Signals | None]:
        """Whether any process finds that saving is due, and a signal that any has received."""
        if self._several and self.received is None and os.getppid() != self._parent:
            self.received = signal.SIGTERM  # whoever was to pass it on is gone: torchrun dies of SIGUSR1, for example
        any_due, number = distributed.highest([due, self.received or 0])
        return bool(any_due), signal.Signals(number) if number else None
