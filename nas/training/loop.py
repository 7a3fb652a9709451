"""The retraining stage: train the derived network from scratch."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from nas.data.inputs import Batch, Inputs, each
from nas.data.loader import Loader, between_steps
from nas.runtime import distributed
from nas.runtime.buffers import of_processes, restore_unsaved, unsaved
from nas.runtime.fused_step import zero_gradients
from nas.runtime.nonfinite import RETRAINING, Guard, naming
from nas.runtime.precision import Precision, take_step
from nas.runtime.rng import random_state, set_random_state
from nas.runtime.runtime import device_of
from nas.spaces.cell import set_drop_path
from nas.storage import checkpoint_file
from nas.training.ema import Average
from nas.training.frozen_parts import FrozenParts
from nas.training.hooks import Hook, Hooks, in_training_mode
from nas.training.meter import Meter, StepResult
from nas.training.metrics import single_sum
from nas.training.own_generators import OwnGenerators
from nas.training.schedule import CosineByEpoch, Schedule, learning_rate, progress, set_lr
from nas.training.task import Task
from nas.training.task_state import TaskState
from nas.training.weighing import WeighedLoss


@dataclass
class RetrainState:
    """All that retraining changes: what a checkpoint of it holds.

    network: what is trained; average: of its weights, if one is kept. scaler: of the losses, in fp16.
    metric: the task's. In the middle of an epoch, `step` steps of it are done and measured by `meter`.
    """

    network: nn.Module
    optimizer: Optimizer
    average: Average | None = None
    scaler: GradScaler = field(default_factory=Precision().scaler)
    guard: Guard = field(default_factory=Guard)
    metric: str = "accuracy"
    task: TaskState | None = None  # what the loss itself changes, if it may change something
    generators: OwnGenerators | None = None  # that the network, the loss and the augmentation hold
    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the epoch after those
    seconds: float = 0.0  # that these took
    metrics: dict[str, float] = field(default_factory=dict)  # of the last epoch done
    steps: int = 0  # an epoch has
    meter: Meter = field(init=False)
    frozen: FrozenParts = field(init=False)  # since then

    def __post_init__(self) -> None:
        self.frozen = FrozenParts(self.network)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.step, self.seconds, self.meter = 0, 0.0, Meter(self.metric)

    def finish_epoch(self, **rates: float) -> None:
        """Measure an epoch of which all steps are done. rates: what is logged beside, e.g. drop_path."""
        self.metrics = {
            **self.meter.summary("weights"),
            "lr/weights": float(self.optimizer.param_groups[0]["lr"]),
            **rates,
            **self.guard.metrics(),
            "seconds_per_step": self.seconds / self.steps,
            "examples_per_second": self.meter.examples / self.seconds,
        }
        self.epoch += 1
        self.begin_epoch()

    def ended(self, epochs: int) -> bool:
        """Whether a training of so many epochs is over."""
        return self.epoch == epochs

    @property
    def result(self) -> nn.Module:
        """The network that is scored, exported and loaded again: the moving average if there is one."""
        return self.network if self.average is None else self.average.network

    def state_dict(self) -> dict[str, Any]:
        """``network``: of the result; with an average, ``trained_network`` is what training would go on with.

        Raises DivergenceError if it is not finite: it is not to be saved over one that is.
        """
        self.guard.check(RETRAINING, self.network.parameters(), naming(self.network))
        state = {
            "network": self.result.state_dict(),
            "network_buffers": unsaved(self.result),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "guard": self.guard.state_dict(),
            "random": random_state(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "metrics": self.metrics,
            "meter": self.meter.state_dict(),
            "frozen": self.frozen.state_dict(),
            "buffers_of_processes": of_processes(self.network),
        }
        if self.task is not None:
            state["task"] = distributed.of_all(self.task.state_dict())
        if self.generators is not None:
            state["generators"] = distributed.of_all(self.generators.state_dict())
        if self.average is not None:
            state |= {
                "trained_network": self.network.state_dict(),
                "trained_network_buffers": unsaved(self.network),
                "average_updates": self.average.updates,
            }
        return state

    def load_state_dict(self, state: dict[str, Any], *, source: str | Path) -> None:
        """Go on where `state` was taken. Raises CheckpointError, naming `source`, if it is of another network."""
        with checkpoint_file.taken_from(source):
            checkpoint_file.restore(self.result, state["network"], source=source)
            restore_unsaved(self.result, state["network_buffers"])
            if self.average is not None:
                checkpoint_file.restore(self.network, state["trained_network"], source=source)
                restore_unsaved(self.network, state["trained_network_buffers"])
                self.average.updates = state["average_updates"]
            if buffers := state["buffers_of_processes"]:
                restore_unsaved(self.network, distributed.of_this_process(buffers))
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.guard.load_state_dict(state["guard"])
            if self.task is not None:
                self.task.load_state_dict(distributed.of_this_process(state["task"]))
            if self.generators is not None:
                self.generators.load_state_dict(distributed.of_this_process(state["generators"]))
            self.frozen.load_state_dict(state["frozen"])
            self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
            self.metrics = state["metrics"]
            self.meter.load_state_dict(state["meter"], device=device_of(self.network))
            set_random_state(state["random"])


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The settings of a training step.

    auxiliary_weight: of the auxiliary head's loss, where there is one; grad_clip: norm, 0 for none.
    label_smoothing: probability that the loss, though not the metric, spreads evenly over all classes.
    accumulation: parts that a batch is split into, one forward and backward pass each, to save memory. The gradient is
    that of the whole batch, except that batch norms see the statistics of a part, and that a teacher's features are
    compared relative to those of a part.
    precision: of the forward passes.
    """

    auxiliary_weight: float = 0.0
    grad_clip: float = 0.0
    label_smoothing: float = 0.0
    accumulation: int = 1
    precision: Precision = field(default_factory=Precision)

    def __call__(
        self, state: RetrainState, batch: Batch, task: Task, *, forward: Callable[..., Any] | None = None
    ) -> StepResult:
        """One step of the optimiser. Nothing in it waits for the device, but see `Precision`.

        forward: state.network, or what a compiler made of it.
        """
        forward = state.network if forward is None else forward
        inputs, targets = batch
        loss, metric = torch.zeros((2,), dtype=torch.float32, device=targets.device)
        state.guard.begin(state.network, *(() if state.task is None else state.task.modules))
        zero_gradients(state.optimizer)
        whole: WeighedLoss | None = None
        for number, (some_inputs, some_targets) in enumerate(parts(inputs, targets, self.accumulation)):
            with self.precision.autocast():
                outputs = forward(*each(some_inputs))
                if whole is None:  # now that the outputs say how many classes there are
                    whole = WeighedLoss(task, self.seen(targets, outputs), count=self.accumulation)
                part_loss = self.loss(outputs, some_targets, whole.part(number))
            state.scaler.scale(part_loss).backward()
            loss += part_loss.detach()
            metric += single_sum(task.measure(main_outputs(outputs).detach(), some_targets))
        watch = state.guard.watch(RETRAINING, loss, naming(state.network))
        taken = take_step(state.optimizer, state.scaler, max_norm=self.grad_clip, watch=watch, measured=[metric])
        if state.average is not None and not taken.skipped:
            state.average.update()
        return StepResult(watch.loss, metric, len(targets), taken.norm, taken.skipped, state.scaler.is_enabled())

    def loss(self, outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor, task: Task | WeighedLoss) -> Tensor:
        """The loss of the outputs. An auxiliary head adds a second loss, with a weight."""
        targets = self.seen(targets, outputs)
        if isinstance(outputs, tuple):
            return task.loss(outputs[0], targets) + self.auxiliary_weight * task.loss(outputs[1], targets)
        return task.loss(outputs, targets)

    def seen(self, targets: Tensor, outputs: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """The targets as the loss sees them."""
        if not self.label_smoothing:
            return targets
        return smoothed(targets, amount=self.label_smoothing, classes=main_outputs(outputs).shape[1])


@dataclass(frozen=True, kw_only=True)
class RetrainPlan:
    """The epochs of a retraining and their schedules. lr: by step or by epoch. drop_path: the rate by epoch."""

    epochs: int
    lr: Schedule | CosineByEpoch
    drop_path: Schedule


def retrain(
    state: RetrainState,
    *,
    task: Task,
    loader: Loader,
    plan: RetrainPlan,
    step: TrainingStep,
    forward: Callable[..., Any] | None = None,
    hooks: Iterable[Hook] = (),
) -> None:
    """Train from where the state is to the end. The network of the last epoch counts; nothing is selected on the way.

    forward: as in `TrainingStep`. hooks: called after each step and each epoch, in their order.
    """
    every, epochs = Hooks(hooks), plan.epochs
    state.steps = steps = len(loader)
    while state.epoch < epochs:
        epoch, rate = state.epoch, plan.drop_path(progress(state.epoch, epochs))
        set_drop_path(state.network, rate)
        started = time.perf_counter() - state.seconds
        for batch in between_steps(loader.epoch(epoch, start=state.step)):
            set_lr(state.optimizer, learning_rate(plan.lr, epoch, state.step, steps=steps, epochs=epochs))
            in_training_mode(state.network)
            with state.guard.at(epoch, state.step):
                state.meter.add(step(state, batch, task, forward=forward))
            state.step, state.seconds = state.step + 1, time.perf_counter() - started
            every.after_step(state)
        distributed.check_equal_weights(dict(state.network.named_parameters()))
        state.finish_epoch(drop_path=rate)
        every.after_epoch(state)


def main_outputs(outputs: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Without those of an auxiliary head."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def parts(inputs: Inputs, targets: Tensor, count: int) -> Iterator[Batch]:
    """A batch as `count` smaller ones, of sizes that differ by one at most."""
    for *some_inputs, some_targets in zip(*(x.tensor_split(count) for x in (*each(inputs), targets)), strict=True):
        yield tuple(some_inputs) if isinstance(inputs, tuple) else some_inputs[0], some_targets


def smoothed(targets: Tensor, *, amount: float, classes: int) -> Tensor:
    """targets: (B, ...) labels, or (B, classes, ...) probabilities. Returns probabilities, of which the part `amount`
    is spread evenly over all classes. Source: Szegedy et al. 2016, sec. 7."""
    if not targets.is_floating_point():
        targets = F.one_hot(targets, classes).movedim(-1, 1).float()
    return targets * (1 - amount) + amount / classes
