"""Tries one training step before anything is written, so that errors are raised early."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nas.data.inputs import Batch, Inputs, each
from nas.errors import DivergenceError, SpaceError, described
from nas.runtime.buffers import restore_unsaved, unsaved
from nas.runtime.runtime import seed_layers
from nas.supernet.choice import UngatedError
from nas.training.batch_norm import synchronised
from nas.training.distillation import attached, without_teacher
from nas.training.ema import Average
from nas.training.loop import RetrainState, TrainingStep, parts
from nas.training.put_back import all_put_back
from nas.training.step_failure import Trial
from nas.training.task import Task
from nas.training.task_state import changing
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
    then: Callable[[], None] | None = None,
) -> None:
    """Tries one training step on a part of a batch: forward, backward, optimiser, averaging of the weights.

    The part is the smallest one that has a loss, see `smallest_that_counts`.
    All state is restored bit for bit: that of the network, the optimiser, the task, and the global generators.
    step: the settings of a training step. decay: of the average, in [0, 1); 0 for no average. then: is called after
    the step, before the state is restored.
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

    own_task = without_teacher(task)
    with (
        all_put_back([network, optimizer, task, own_task, *changing(own_task)], device=device),
        attached(task, network),
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
        except DivergenceError as error:  # of the first weights, so no learning rate has brought it about
            raise DivergenceError(
                f"{trial.step} on trial: {error.problem}",
                fix="correct the model, the loss or the examples, or skip such steps by runtime.on_nonfinite=skip",
            ) from error
        if then is not None:
            then()


def check_saves_all(network: nn.Module, build: Callable[[], nn.Module], inputs: Inputs) -> None:
    """Raises SpaceError if a new network with the saved state of `network` gives other outputs than `network`.

    A checkpoint would then load as another network than the one that was trained. build: makes the new network. Does
    not compare if `network` gives other outputs each time.
    """
    with torch.no_grad():
        other = build().train()
        try:  # in training mode, as checkpoints are written: evaluation mode may change weights, as merged LoRA
            other.load_state_dict(network.state_dict())
            restore_unsaved(other, unsaved(network))
        except (AttributeError, RuntimeError) as error:
            raise SpaceError(
                f"what the network has learnt in a step cannot be loaded into a new one ({described(error)})",
                fix="make all parameters, buffers and modules in the constructors",
            ) from error
        expected = network.eval()(*each(inputs))
        got = other.eval()(*each(inputs))
        if torch.allclose(got, expected, rtol=1e-3, atol=1e-5, equal_nan=True):
            return
        again = network(*each(inputs))
    if torch.equal(expected, again):
        raise SpaceError(
            "a new network gives other outputs after loading what is saved of the network, so part of it is not saved",
            fix="keep what its outputs depend on in parameters or buffers (register_buffer, nn.ModuleList), not in "
            "plain attributes or lists that differ between two networks or change in training",
        )


@torch.no_grad()
def check_one_example(network: nn.Module, batch: Batch, task: Task) -> None:
    """Raises SpaceError for a network that leaves out the dimension of the examples if there is one, as squeeze() does,
    where the task needs it: the last batch of a score may have one example."""
    network.eval()
    inputs, targets = batch
    several: Tensor = network(*each(inputs))
    try:
        one: Tensor = network(*(tensor[:1] for tensor in each(inputs)))
    except Exception:  # of any code: a network may need several examples
        return
    if one.ndim == several.ndim:
        return
    try:
        task.loss(one, targets[:1])
        task.measure(one, targets[:1])
    except Exception as error:  # whatever a loss makes of it
        raise SpaceError(
            f"the model gives outputs of shape {tuple(one.shape)} for one example, expected {(1, *several.shape[1:])} "
            f"({described(error)})",
            fix="name the dimension to remove, e.g. squeeze(-1) or flatten(1) in place of squeeze()",
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


def try_small(build: Callable[[], nn.Module], batch: Batch, *, task: Task, step: TrainingStep) -> None:
    """Calls `try_training` on two examples with a plain optimiser, for a network without training settings.

    build: makes the network. Raises SpaceError as `try_training` and `check_saves_all` do.
    """
    network = build()
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
    optimizer = torch.optim.SGD(parameters, lr=1e-3)

    def then() -> None:
        check_saves_all(network, build, few[0])
        check_one_example(network, few, task)

    try_training(network, few, task=task, optimizer=optimizer, step=step, then=then)
