"""The parts that search and retraining share: space, task, data, device, and checks of them."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nas.data.bundle import DataBundle
from nas.data.custom import same
from nas.data.inputs import Inputs, each, form, mapped
from nas.data.loader import Loader
from nas.errors import ConfigError, NasError, SpaceError, described
from nas.runtime import distributed
from nas.runtime.memory import available_memory, size
from nas.runtime.runtime import Runtime
from nas.spaces.nas_bench_201_table import NasBench201Table
from nas.spaces.space import Space
from nas.supernet.choice import UngatedError
from nas.supernet.unregistered import unregistered_parameters
from nas.training.distillation import Distillation, Distilled
from nas.training.network_size import at_most
from nas.training.optimizers import build_optimizer
from nas.training.put_back import all_put_back
from nas.training.step_failure import place
from nas.training.task import Metric, Task, check_value
from nas.training.task_state import TaskState, changing, parameters_of
from nas.training.weighing import how_parts_add_up

# Of a network that is built: each module takes some kilobytes and 100 us, each number is a float32.
MODULES, BYTES_PER_NUMBER = 1_000_000, 4


@dataclass(frozen=True, kw_only=True)
class Job:
    """The parts that search and retraining share.

    data: a stage reads the training split alone. benchmark: looks up what a search derives; None for none.
    progress: whether the stages print what they do. distillation: what networks learn from a teacher; None without one.
    task_state: the state of the task. Every stage begins with the one that the task had when the job was made.
    """

    runtime: Runtime
    space: Space
    task: Task
    data: DataBundle
    seed: int = 0
    benchmark: NasBench201Table | None = None
    progress: bool = True
    distillation: Distillation | None = None
    task_state: TaskState = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.task.metric, Metric):
            raise ConfigError(
                f"task.metric is {self.task.metric!r:.80}, expected a nas.training.task.Metric",
                fix='set metric = Metric("score", higher_is_better=True) in the class',
            )
        runtime = self.runtime
        given: dict[str, Any] = {"seed": self.seed, "device": runtime.device.type, "precision": runtime.precision.name}
        if distributed.world() > 1:
            train, labels = self.data.train, self.data.train.labels
            # Not all data have a digest. The labels show another order, as of a random split without a seed.
            known = [] if labels is None else distributed.digest_each([labels]).tolist()
            given["the training examples"] = [len(train), *known, (self.data.trained_on or "")[:12]]
        distributed.check_same(given)
        # Now, as the checks of a stage may use the task.
        object.__setattr__(self, "task_state", TaskState(self.task, augment=self.data.augment))

    @property
    def training_task(self) -> Task:
        """The task that networks are trained by: a new one for each use. Scores are of `task`."""
        return self.task if self.distillation is None else cast(Task, Distilled(self.task, self.distillation))

    @property
    def seen(self) -> dict[str, Any]:
        """Returns what a checkpoint records about the training examples, the files of the space and the teacher."""
        taught = {} if self.distillation is None else {"teacher": self.distillation.digest}
        return {**self.data.seen, **self.space.digests, **taught}

    def build_optimizer(self, make: Callable[..., Any], network: nn.Module, *, setting: str) -> Optimizer:
        """See `nas.training.optimizers.build_optimizer`."""
        return build_optimizer(make, network, device=self.runtime.device, setting=setting)

    def buildable(self) -> AbstractContextManager[None]:
        """A context in which building a network that the memory cannot hold raises ConfigError. Without it the system
        would kill the process."""
        memory = available_memory(torch.device("cpu"))
        error = ConfigError(
            "the network is larger than the memory" + ("" if memory is None else f", {size(memory)}"),
            fix="set space.channels or space.cells lower, or those of retrain.network",
        )
        numbers = 2**62 if memory is None else memory // BYTES_PER_NUMBER
        return at_most(modules=MODULES, numbers=numbers, error=error)

    def check_outputs(self, outputs: Any, targets: Tensor) -> None:
        """Raises SpaceError or DataError unless what the model returned suits the task."""
        if not isinstance(outputs, Tensor):
            raise SpaceError(
                f"the model returns a {type(outputs).__name__}, expected one tensor",
                fix="return the tensor that the loss is to be computed of",
            )
        before = [(one, one._version, one.clone()) for one in (outputs, targets)]
        with all_put_back([self.task, *changing(self.task)], device=targets.device):
            self.task.check(outputs, targets, self.data.spec)
            check_each(self.task, outputs, targets)
        if any(one._version != version or not same(one, copy) for one, version, copy in before):
            raise ConfigError(
                "the loss or the metric of the task writes into the outputs or the targets, which are used afterwards",
                fix="let it work on copies, e.g. targets = targets.clone()",
            )

    def check_taught(self, network: nn.Module, inputs: Inputs, outputs: Tensor) -> None:
        """Raises SpaceError if there is a teacher that the network cannot learn from."""
        if self.distillation is not None:
            self.distillation.check(network, inputs, outputs)

    def check_parts(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises ConfigError for a loss that sums over the batch. Prints a warning if the loss of a batch is not the
        mean of those of its halves, each with the weight that the task gives it.

        outputs: of a few examples, as the loss is only compared with itself. targets: of a whole batch.
        """
        warn_of_parameters("task", self.task)
        with all_put_back([self.task, *changing(self.task)], device=targets.device), torch.no_grad():
            kind = how_parts_add_up(self.task, outputs[torch.arange(len(targets)) % len(outputs)], targets)
        if kind == "sum":
            raise ConfigError(
                "task.loss sums over the batch, expected its mean", fix="let it return the mean, e.g. reduction='mean'"
            )
        if kind == "other" and distributed.first():
            shapes = [tuple(outputs.shape[1:]), tuple(targets.shape[1:])]
            pairs = f"; outputs of {shapes[0]} and targets of {shapes[1]} may broadcast to all pairs"
            print(
                "warning: task.loss of a batch is not the mean of the losses of its halves: accumulation, several "
                "processes and scores weigh the parts of a batch by their numbers of examples; if the loss ignores "
                "some labels or weighs classes, give task.weight, which returns a weight for each example"
                + pairs
                * (targets.is_floating_point() and shapes[0] != shapes[1]),
                file=sys.stderr,
            )


def check_each(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """Raises ConfigError unless the loss of a task is a scalar, and its metric and weights have one number for each
    example, as means over examples are computed of them."""
    # A loss may need more than two examples. A step on trial has a whole batch.
    check_value("loss", task.loss, outputs, targets, expected=(), may_fail=True)
    check_value("measure", task.measure, outputs, targets, expected=targets.shape[:1])
    if (weigh := getattr(task, "weights", None)) is not None:
        check_value("weights", weigh, targets, expected=targets.shape[:1])


def warn_of_parameters(what: str, part: Any, *, but: Collection[Tensor] = ()) -> None:
    """Prints a warning of a part with parameters that require a gradient. what: the name of the part. but: parameters
    that learn."""
    if (learn := parameters_of(part, but=but)) and distributed.first():
        print(
            f"warning: the {what} holds {len(learn)} parameters that require a gradient, such as {learn[0]}, but "
            "optimisers change the weights of the network and the logits alone, so they will not learn: hold them in "
            "the network, or set requires_grad=False",
            file=sys.stderr,
        )


def check_learns(network: nn.Module, *, what: str) -> None:
    """Raises SpaceError for a network without weights, or whose weights are all frozen. what: the network, for the
    message."""
    learn = [weight.requires_grad for weight in network.parameters()]
    if not learn:
        raise SpaceError(
            f"{what} has no parameters, so nothing can learn",
            fix="hold its weights as parameters, in modules that are attributes of the model or in an nn.ModuleList",
        )
    if not any(learn):
        raise SpaceError(
            f"all weights of {what} are frozen (requires_grad=False), so nothing can learn",
            fix="let some of them learn: parameter.requires_grad_(True)",
        )


def check_seed(seed: int) -> None:
    """Raises ConfigError for a seed that torch's generators do not take."""
    if abs(seed) >= 2**63:
        raise ConfigError(f"seed must be below 2^63, got {seed}", fix="set seed=0")


def at_least(minimum: float, **settings: float) -> None:
    """Raises ConfigError unless every setting (``a__b`` for a.b) is >= minimum."""
    for name, value in settings.items():
        if not value >= minimum:
            dotted = name.replace("__", ".")
            raise ConfigError(f"{dotted} must be at least {minimum:g}, got {value}", fix=f"set {dotted}={minimum:g}")


def two_examples(loader: Loader) -> tuple[Inputs, Tensor]:
    """The first two of an epoch, or the only one: enough to see whether everything fits."""
    return two_of(next(loader.epoch(0)))


def two_of(batch: tuple[Inputs, Tensor]) -> tuple[Inputs, Tensor]:
    """The first two examples of a batch, or its only one."""
    inputs, targets = batch
    return mapped(lambda tensor: tensor[:2], inputs), targets[:2]


@contextmanager
def taking(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Raises SpaceError for what a model raises when it is given the inputs, with both named. Also raises it for
    parameters that the forward pass makes: the optimiser does not know them, so they would never learn. Prints a
    warning of parameters that are not registered."""
    known = set(model.parameters())
    try:
        yield
    except UngatedError as error:
        raise SpaceError(
            f"the model runs a choice that is not among its registered children: {error.problem}",
            fix="let the model reach its choices as registered children only, not through a closure or an object",
        ) from error
    except NasError:  # some of which are one of these, too
        raise
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        forms = ", ".join(map(form, each(inputs)))
        where = place(model, error.__traceback__)
        raise SpaceError(
            f"the model cannot take inputs of {forms}: it fails{where} ({described(error)})",
            fix="change the model or the data, until model(inputs) runs; --debug shows where it stopped",
        ) from error
    late = [path for path, parameter in model.named_parameters() if parameter not in known]
    if late:
        raise SpaceError(
            f"the model makes the parameter {late[0]} in its forward pass, where no optimiser knows it, expected all "
            "parameters to be there once the model is built",
            fix="make it in the constructor of its module",
        )
    if (lost := list(unregistered_parameters(model))) and distributed.first():
        print(
            f"warning: {lost[0]} of the model holds parameters that torch does not register, so they neither learn nor "
            "are saved: hold them in an nn.ModuleList or nn.ParameterList, or set requires_grad=False for those that "
            "are not to learn",
            file=sys.stderr,
        )
