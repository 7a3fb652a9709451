"""Hooks: what looks at a stage from outside, such as logging, saving and progress."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from nas.errors import ConfigError
from nas.storage.checkpointing import Checkpoints
from nas.storage.metrics_log import JsonLines
from nas.training.step_profile import StepProfile


class Hook:
    """Looks at a stage after each step and after each epoch. A hook overrides the methods that it needs.

    state: the stage's, a `SearchState` or a `RetrainState`. A hook may add to `state.metrics`. In a search it may set
    `state.stopped` to a reason, with which the search ends after the epoch; and what its `state_dict` returns is saved,
    for its `load_state_dict`.
    """

    def after_step(self, state: Any) -> None:
        pass

    def after_epoch(self, state: Any) -> None:
        pass


class Hooks(Hook):
    """Several hooks, called in their order."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._hooks = tuple(hooks)

    def after_step(self, state: Any) -> None:
        with torch.enable_grad():  # also puts back the mode that a hook may leave
            for hook in self._hooks:
                hook.after_step(state)

    def after_epoch(self, state: Any) -> None:
        with torch.enable_grad():
            for hook in self._hooks:
                hook.after_epoch(state)
                state.metrics = {name: plain_number(name, value) for name, value in state.metrics.items()}


def in_training_mode(model: nn.Module) -> None:
    """Sets a model that a hook has put into evaluation mode to training mode. Leaves parts of it alone, which a hook
    may freeze."""
    if not model.training:
        model.train()


class Profiling(Hook):
    """Records a few steps, see `StepProfile`."""

    def __init__(self, profile: StepProfile) -> None:
        self._profile = profile

    def after_step(self, state: Any) -> None:
        self._profile.step()


class Saving(Hook):
    """Saves and logs; the last hook of a stage, so that all metrics are there.

    stage: its name in the log. everything: makes the content of a checkpoint. last: whether the stage has ended.
    on_epoch: called before a checkpoint is written.
    Raises Interrupted once the state is saved, if a signal was received.
    """

    def __init__(
        self,
        stage: str,
        *,
        checkpoints: Checkpoints,
        tracker: JsonLines,
        everything: Callable[[], dict[str, Any]],
        last: Callable[[], bool],
        on_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        self._stage = stage
        self._checkpoints = checkpoints
        self._tracker = tracker
        self._everything = everything
        self._last = last
        self._on_epoch = on_epoch

    def after_step(self, state: Any) -> None:
        self._checkpoints.after_step(self._everything)

    def after_epoch(self, state: Any) -> None:
        self._on_epoch()
        self._checkpoints.after_epoch(self._everything, last=self._last())
        self._tracker.log(self._stage, state.epoch - 1, state.metrics)
        self._checkpoints.stop_if_asked(self._everything)


def plain_number(name: str, value: Any) -> float:
    """Returns a metric as a number of Python, also one of NumPy or torch, which a checkpoint could not hold.

    Raises ConfigError for anything else.
    """
    if type(value) in (int, float):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the metric {name} is a {type(value).__name__}, expected a number", fix="write numbers into state.metrics"
        ) from error
