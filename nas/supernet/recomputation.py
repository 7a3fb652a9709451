"""Activation checkpointing around choices: which of torch's two kinds they may be run by."""

import inspect

from torch.utils.checkpoint import CheckpointFunction

from nas.errors import SpaceError


def refuse_reentrant(what: str) -> None:
    """Raises SpaceError if the caller, `what` it is in words, is run by torch.utils.checkpoint with use_reentrant=True.

    That runs a function without gradients first, and later with those of what it was given alone: a gate is not.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            raise SpaceError(
                f"{what} is run by torch.utils.checkpoint with use_reentrant=True, which loses the gradients of gates",
                fix="set use_reentrant=False",
            )
        frame = frame.f_back
