"""The retraining stage: train the derived network from scratch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nas.data.inputs import each
from nas.data.loader import Loader
from nas.meter import Meter, StepResult
from nas.progress import Progress
from nas.schedule import Schedule, progress, set_lr
from nas.spaces.cell import set_drop_path
from nas.task import Task


@dataclass
class RetrainState:
    """All that retraining changes: what a checkpoint of it holds."""

    network: nn.Module
    optimizer: Optimizer
    epoch: int = 0  # epochs done

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch_generator": torch.get_rng_state(),
            "epoch": self.epoch,
        }


def retrain(
    state: RetrainState,
    *,
    task: Task,
    loader: Loader,
    epochs: int,
    lr: Schedule,
    drop_path: Schedule,
    auxiliary_weight: float,
    grad_clip: float,
    bar: Progress,
    on_epoch: Callable[[RetrainState, dict[str, float]], None],
) -> None:
    """Train from state.epoch to the end. The network of the last epoch counts; nothing is selected on the way.

    lr: by step; drop_path: rate by epoch; auxiliary_weight: of the auxiliary head's loss, where there is one;
    grad_clip: norm, 0 for none.
    """
    steps = len(loader)
    parameters = list(state.network.parameters())
    state.network.train()
    for epoch in range(state.epoch, epochs):
        rate = drop_path(progress(epoch, epochs))
        set_drop_path(state.network, rate)
        meter, started = Meter(task.metric.name), time.perf_counter()
        for step, (inputs, targets) in enumerate(loader.epoch(epoch)):
            set_lr(state.optimizer, lr(progress(epoch * steps + step, epochs * steps)))
            state.optimizer.zero_grad(set_to_none=True)
            loss, outputs = training_loss(task, state.network(*each(inputs)), targets, auxiliary_weight)
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(parameters, grad_clip or torch.inf)
            state.optimizer.step()
            metric = task.measure(outputs.detach(), targets).sum()
            meter.add(StepResult(loss.detach(), metric, len(targets), grad_norm))
            bar.step(epoch, (step + 1) / steps)
        seconds = time.perf_counter() - started
        metrics = {
            **meter.summary("weights"),
            "lr/weights": state.optimizer.param_groups[0]["lr"],
            "drop_path": rate,
            "seconds_per_step": seconds / steps,
            "examples_per_second": meter.examples / seconds,
        }
        state.epoch = epoch + 1
        bar.epoch(epoch, metrics)
        on_epoch(state, metrics)


def training_loss(
    task: Task, output: Tensor | tuple[Tensor, Tensor], targets: Tensor, auxiliary_weight: float
) -> tuple[Tensor, Tensor]:
    """The loss of what a network returned, and its outputs: an auxiliary head adds a weighted second loss."""
    if isinstance(output, tuple):
        outputs, auxiliary = output
        return task.loss(outputs, targets) + auxiliary_weight * task.loss(auxiliary, targets), outputs
    return task.loss(output, targets), output
