"""Counts what is recorded and warns about what runs without recordings."""

import sys
from typing import Any

from nas.methods.cuda_graphs.recorder import Recorder
from nas.supernet.choice import Choice
from nas.training.hooks import Hook

MIB = 2**20


class Account(Hook):
    """Counts the recordings for the choices of a supernet, and prints each kind of warning once."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._choices: set[Choice | None] = set()
        self._operations = self._said = 0
        self._warned: set[str] = set()

    def add(self, choice: Choice | None) -> None:
        """Counts a recorded operation. choice: the choice that the candidate belongs to; None for a fixed part."""
        self._operations += 1
        self._choices.add(choice)

    def warn(self, kind: str, text: str) -> None:
        """Prints a warning. text: says what runs instead."""
        if kind not in self._warned:
            self._warned.add(kind)
            print(f"warning: {text}", file=sys.stderr)

    def described(self) -> str:
        return (
            f"runtime.cuda_graphs has recorded {self._operations} operations of {len(self._choices - {None})} choices "
            f"and their surroundings, and keeps {self._recorder.kept / MIB:.0f} MiB for them"
        )

    def after_epoch(self, state: Any) -> None:
        """Prints what is recorded, after an epoch in which something was recorded."""
        if self._operations > self._said:
            self._said = self._operations
            print(f"note: {self.described()}", file=sys.stderr)
