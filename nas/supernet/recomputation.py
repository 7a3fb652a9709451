"""Refuses reentrant activation checkpointing around choices, one of torch's two kinds of checkpointing."""

import inspect

from torch.utils.checkpoint import CheckpointFunction

from nas.errors import SpaceError


def refuse_reentrant(what: str) -> None:
    """Raises SpaceError if torch.utils.checkpoint with use_reentrant=True runs the caller.

    Reentrant checkpointing computes gradients only for the inputs of the function. A gate is no input, so its
    gradient would be lost. what: describes the caller in the error message.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            raise SpaceError(
                f"{what} is run by torch.utils.checkpoint with use_reentrant=True, which loses the gradients of gates",
                fix="set use_reentrant=False",
            )
        frame = frame.f_back
