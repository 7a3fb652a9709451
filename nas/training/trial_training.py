"""Tries one training step before anything is written, so that errors are raised early."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nas.data.loader import Batch
from nas.errors import SpaceError
from nas.runtime.runtime import seed_layers
from nas.supernet.choice import UngatedError
from nas.training.batch_norm import synchronised
from nas.training.ema import Average
from nas.training.loop import RetrainState, TrainingStep, parts
from nas.training.put_back import all_put_back
from nas.training.step_failure import Trial
from nas.training.task import Task
from nas.training.weighing import weights_of

TRAINING = Trial(
    "a training step of the derived network", "retrain.batch_size or retrain.accumulation", "optim@retrain.optim"
)


def try_training(
    network: nn.Module,
    batch: Batch,
    *,
    task: Task,
    optimizer: Optimizer,
    step: TrainingStep | None = None,
    decay: float = 0.999,
    trial: Trial = TRAINING,
) -> None:
    """Tries one training step on a part of a batch: forward, backward, optimiser, averaging of the weights.

    The part is the smallest one that has a loss, see `smallest_that_counts`.
    All state is restored bit for bit: that of the network, the optimiser, the task, and the global generators.
    step: the settings of a training step. decay: of the average, in [0, 1); 0 for no average.
    Raises SpaceError, naming the module, if something in it fails.
    """
    step = TrainingStep() if step is None else step
    part = smallest_that_counts(task, batch, step.accumulation)
    step = replace(step, accumulation=1)
    device = part[1].device

    def check(module: nn.Module, inputs: object, outputs: object) -> None:
        pair = isinstance(outputs, tuple) and len(outputs) == 2 and all(isinstance(one, Tensor) for one in outputs)
        if not pair and not isinstance(outputs, Tensor):
            raise SpaceError(
                f"in training the derived network returns a {type(outputs).__name__}, expected one tensor, or a pair "
                "of the outputs and those of an auxiliary head",
                fix="return the tensor that the loss is to be computed of",
            )

    with (
        all_put_back([network, optimizer, task], device=device),
        synchronised(network),
        trial.explained(network, step.precision),
        network.register_forward_hook(check),
    ):
        seed_layers(torch.initial_seed())  # as in training, where each process draws numbers of its own
        network.train()
        average = Average(network, decay=decay) if decay > 0 else None
        state = RetrainState(network, optimizer, average, scaler=step.precision.scaler())
        try:
            step(state, part, task)
        except UngatedError as error:
            raise SpaceError(
                f"the derived network still runs a choice: {error.problem}",
                fix="let the model reach its choices as registered children only, not through a closure or a list",
            ) from error


def smallest_that_counts(task: Task, batch: Batch, accumulation: int) -> Batch:
    """Returns the last part of a batch in which some label has a weight; the last part if there is none.

    Training adds nothing for a part without such a label, whose loss by itself is 0 / 0.
    """
    split = list(parts(*batch, accumulation))[::-1]  # the last ones are the smallest
    for part in split:
        weights = weights_of(task, part[1])
        if weights is None or weights.sum() > 0:
            return part
    return split[0]


def try_small(network: nn.Module, batch: Batch, *, task: Task, step: TrainingStep) -> None:
    """Calls `try_training` on two examples with a plain optimiser, for a network without training settings."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        return
    inputs, targets = batch
    if len(targets) == 1:  # a batch norm of the network may need two examples
        inputs = (
            tuple(x.repeat_interleave(2, 0) for x in inputs)
            if isinstance(inputs, tuple)
            else inputs.repeat_interleave(2, 0)
        )
        targets = targets.repeat_interleave(2, 0)
    few = (tuple(x[:2] for x in inputs) if isinstance(inputs, tuple) else inputs[:2], targets[:2])
    try_training(network, few, task=task, optimizer=torch.optim.SGD(parameters, lr=1e-3), step=step)
