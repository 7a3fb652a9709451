"""Decides when a stage saves its state, how many checkpoints are kept, and where a run stops after a signal.

Path: ``<run>/search/checkpoint.pt`` and ``<run>/retrain/checkpoint.pt``. Content: the state of the stage (see
`nas.methods.state` and `nas.training.loop`), with the settings and a fingerprint of the data (see
`nas.training.records`).
"""

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
    """The checkpoints of one stage of a run, at `path`. A signal inside its context saves, and then raises Interrupted.

    kind: of the checkpoints. resume: whether there may be checkpoints already.
    writes: whether this process saves. Several processes call all methods together; one saves, and stops last. A signal
    to one process stops all.
    every_steps, every_minutes: when to save within an epoch; None: never within an epoch.
    share: the part of the time that saving at the ends of epochs may take. If epochs are too short, only some are
    saved, but always the first and the last. None: every epoch is saved.
    keep: how many checkpoints are kept, the newest first.
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
            ("every_steps", every_steps, "null, to save only after epochs"),
            ("every_minutes", every_minutes, "null, to save only after epochs"),
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
        self._saved = False  # whether the present state is saved
        self._parent = os.getppid()
        self._raised = False  # that a signal was received
        self._state: Callable[[], State] | None = None  # makes the state after the last step
        self._began_at, self._seconds = (
            time.monotonic(),
            0.0,
        )  # seconds spent since then on saving at the ends of epochs

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from, whole or not."""
        return self._resume and any(checkpoint_file.older(self.path, age).exists() for age in range(2))

    def newest(self) -> State | None:
        """Returns the newest whole state to go on from, or None to start from the beginning.

        Names damaged checkpoints on standard error. Raises CheckpointError if all are damaged.
        """
        if not self._resume:
            return None
        state, problems = checkpoint_file.newest(self.path, self._kind)
        for problem in problems if self._writes else ():
            print(f"warning: {problem}; going on from the one before it", file=sys.stderr)
        return state

    def save(self, state: State) -> None:
        """Saves `state`. Raises OutputError if it cannot be written; older checkpoints are then unchanged."""
        if self._writes:
            checkpoint_file.save(self.path, self._kind, state, keep=self._keep)
        self._steps, self._saved_at, self._saved = 0, time.monotonic(), True

    def after_step(self, state: Callable[[], State]) -> None:
        """Saves if saving is due after a step. If a signal was received, saves and raises Interrupted."""
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
        """Raises Interrupted if a signal came after the last step, when all is saved.

        Saves if a data worker was lost between two steps, but not with several processes, as the others wait in a step.
        """
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
            except NasError as failed:  # the error to raise is still that of the worker
                error.saved = f"the last steps cannot be saved ({failed.problem})"

    def after_epoch(self, state: Callable[[], State], *, last: bool) -> None:
        """Saves if `share` allows it, and after the last epoch."""
        self._saved = False
        started = time.monotonic()
        within = self._share is None or self._seconds <= self._share * (started - self._began_at)
        # Only the process that saves knows how long saving took; the others follow it.
        due, _ = self._agreed(last or (self._writes and within))
        if due:
            self.save(state())
            self._seconds += time.monotonic() - started

    def stop_if_asked(self, state: Callable[[], State]) -> None:
        """Raises Interrupted, after saving, if a signal was received. Call it when all is logged."""
        _, received = self._agreed(False)  # together: no process may end before the state is saved
        if received is not None:
            if not self._saved:
                self.save(state())
                self._agreed(False)
            self._raised = True
            raise Interrupted(received)

    def _agreed(self, due: bool) -> tuple[bool, signal.Signals | None]:
        """Returns whether saving is due in any process, and a signal that any process has received, or None."""
        if self._several and self.received is None and os.getppid() != self._parent:
            self.received = (
                signal.SIGTERM
            )  # the parent that passes signals on is gone: SIGUSR1 kills torchrun, for example
        any_due, number = distributed.highest([due, self.received or 0])
        return bool(any_due), signal.Signals(number) if number else None
