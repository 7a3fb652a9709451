"""Checks the arguments of `nas.api`, and makes the parts of a job of them."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, get_type_hints

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from nas.adapt.teacher import teacher_of
from nas.data import given
from nas.data.bundle import DataBundle
from nas.errors import ConfigError
from nas.formats.format import Format
from nas.methods.deriver import Argmax, Deriver, TopPredecessors
from nas.runtime import distributed
from nas.runtime.runtime import Runtime
from nas.settings.arguments import list_of
from nas.settings.building import callable_itself
from nas.settings.names import TABLE
from nas.spaces.custom import Custom
from nas.spaces.darts import Darts
from nas.spaces.space import Space
from nas.training.job import Job, check_seed
from nas.training.task import Classification, Regression, Task, check_targets
from nas.training.trained import Trained

LOOKED_AT = 64  # targets, to see what they are
FORMATS = ("weights", "standalone", "program")
# What the arguments are: numbers by their type, what objects need, and what is called to make a part.
NUMBERS: Mapping[Any, tuple[type, str]] = {int: (Integral, "a whole number"), float: (Real, "a number")}
OBJECTS = {
    "sampler": ("__call__", "samples", "relaxed"),
    "temperature": ("__call__",),
    "deriver": ("__call__",),
    "task": ("loss", "measure", "metric", "check"),
    "benchmark": ("metrics", "check"),
}
MAKERS = ("searcher", "monitor", "weight_optim", "arch_optim", "optim", "saving", "tracker")


def check_arguments(options: type, arguments: Mapping[str, Any]) -> None:
    """Raises ConfigError for an argument of another kind than expected, e.g. a class in place of an object.

    options: the class of the stage's numbers.
    """
    numbers = {name: NUMBERS[hint] for name, hint in get_type_hints(options).items() if hint in NUMBERS}
    numbers["seed"] = NUMBERS[int]
    for name, value in arguments.items():
        is_class = isinstance(value, type)
        if name in numbers:
            kind, expected = numbers[name]
            right, fix = isinstance(value, kind), f"give {expected}, e.g. {name}=1"
        elif name in OBJECTS and value is not None:
            right = not is_class and all(hasattr(value, one) for one in OBJECTS[name])
            expected = f"an object with {', '.join(OBJECTS[name])}"
            fix = f"give {name}={value.__name__}(...)" if is_class else f"see nas.search for {name}"
            if name == "task" and not is_class:
                fix = "give nas.training.Custom(loss=..., metric=..., name=...), or a class like nas.training.task.Task"
        elif name == "regulariser" and value is not None:
            right, expected = not is_class and hasattr(value, "items"), "a dict of name -> object"
            fix = "give e.g. regulariser={'mine': nas.methods.Entropy(...)}"
        elif name in MAKERS:
            right, expected = callable(value), "a class or a function that makes it"
            fix = f"give the class, or functools.partial of the class and its arguments, as {name}"
        elif name == "hooks":  # not an iterator, which this check would exhaust
            right = isinstance(value, list | tuple) and all(map(is_hook, value))
            expected, fix = "a list of objects of nas.training.hooks.Hook", "give hooks=[MyHook()]"
        elif name == "may_change":
            list_of(value, name)
            continue
        else:
            continue
        if not right:
            got = f"the class {value.__name__}" if is_class else f"a {type(value).__name__}"
            raise ConfigError(f"{name} is {got}, expected {expected}", fix=fix)


def is_hook(value: Any) -> bool:
    return hasattr(value, "after_step") and hasattr(value, "after_epoch") and not isinstance(value, type)


def numbers_of(options: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that are fields of `options`, with numbers of NumPy as Python's. Raises as
    `check_arguments` does."""
    check_arguments(options, arguments)
    kinds = get_type_hints(options)
    return {
        name: kind(arguments[name]) if (kind := kinds[name]) in NUMBERS else arguments[name]
        for name in options.__dataclass_fields__  # type: ignore[attr-defined]
    }


def job_of(build_model: Any, train: Any, arguments: Mapping[str, Any]) -> Job:
    """The `Job` that the arguments of `nas.search` or `nas.retrain` describe."""
    seed = int(arguments["seed"])  # of NumPy its text, of which other seeds are made, is another
    check_seed(seed)
    runtime = runtime_on(arguments["device"])
    reading = given.Reading(classes=arguments["classes"], image_size=arguments["image_size"])
    data = given.training(train, reading, augment=arguments["augment"])
    task = arguments["task"] or task_for(data)
    check_targets(task, data.spec, training=data.train)
    space, teacher = space_of(build_model), arguments["teacher"]
    return Job(
        runtime=runtime,
        space=space,
        task=task,
        data=data,
        seed=seed,
        benchmark=arguments.get("benchmark"),
        progress=arguments["progress"] and distributed.first(),
        distillation=None
        if teacher is None
        else teacher_of(teacher).distillation(space, data.spec, runtime, seed=seed),
    )


def space_of(build_model: Any) -> Space:
    if isinstance(build_model, Space):
        return build_model
    if isinstance(build_model, type) and issubclass(build_model, Space):
        raise ConfigError(
            f"build_model is the class {build_model.__name__}, expected a space",
            fix=f"give {build_model.__name__}(...)",
        )
    if isinstance(build_model, Trained):
        build_model = build_model.network
    if isinstance(build_model, nn.Module) or callable(build_model):
        return Custom(factory=build_model)
    raise ConfigError(
        f"build_model is a {type(build_model).__name__}, expected a space, a function that builds a model, or a model",
        fix="give e.g. nas.spaces.NasBench201(cells=1)",
    )


def task_for(data: DataBundle) -> Task:
    """Classification where there are class labels, else regression. Prints a warning of targets that look like labels
    of another form."""
    if data.spec.class_names:
        return Classification()
    first = torch.arange(min(LOOKED_AT, len(data.train)))
    some = data.train.subset(first)  # whose worker processes end with it
    _, targets = next(iter(some.batches([first], device=torch.device("cpu"))))
    one_hot = targets.ndim == 2 and targets.shape[1] > 1 and ((targets == 0) | (targets == 1)).all()
    if one_hot and (targets.sum(1) == 1).all() and distributed.first():
        print(
            f"warning: the targets have the shape {tuple(targets.shape[1:])} and look like one-hot labels, but without "
            "a task they are values for a regression: give labels as integers, e.g. targets.argmax(1)",
            file=sys.stderr,
        )
    return Regression()


def deriver_of(space: Space) -> Deriver:
    """The default deriver: keeps two edges into each node in the DARTS space, and all edges in other spaces."""
    return TopPredecessors() if space.name == Darts.name else Argmax()


def from_start(lr: Any) -> Callable[..., Any]:
    """Returns a function that makes a schedule from the optimiser's learning rate.

    A schedule that is made already, and a function of one argument that is not called ``start``, are schedules
    themselves. Raises ConfigError for schedulers of torch.
    """
    made = lr.func if isinstance(lr, functools.partial) else lr
    kind = made if isinstance(made, type) else type(made)
    if issubclass(kind, LRScheduler):
        raise ConfigError(
            f"lr is torch's {kind.__name__}, expected a function of the progress in [0, 1], as a run may be "
            "continued at any step",
            fix="give e.g. nas.training.Cosine or functools.partial(nas.training.Step, factor=0.1)",
        )
    return lr if callable_itself(lr) and not is_schedule(lr) else lambda start: lr


def is_schedule(function: Any) -> bool:
    """Whether a function takes one argument by its place, and none that is called ``start``."""
    if isinstance(function, type):
        return False
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions that are not written in Python have no signature
        return False
    needed = [one for one in parameters.values() if one.default is one.empty]
    by_place = [one for one in needed if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return "start" not in parameters and len(by_place) == len(needed) == 1


def runtime_on(device: str | torch.device | Runtime) -> Runtime:
    return device if isinstance(device, Runtime) else Runtime(device=device)


def formats_of(given: Any) -> Mapping[str, Format]:
    """Raises ConfigError for what names no format. Without any, no file would hold the network."""
    if isinstance(given, Mapping) and given:
        return given
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Iterable) or not (found := {name: format_called(name) for name in names}):
        raise ConfigError(f"formats is {given!r:.60}, expected a list of names", fix=f"set formats={list(FORMATS)}")
    return found


def format_called(name: Any) -> Format:
    if name not in TABLE["format"]:
        known = ", ".join(TABLE["format"])
        raise ConfigError(f"formats has {name!r}, expected some of {known}", fix=f"set formats={list(FORMATS)}")
    from nas import formats  # here, as some need packages that not everybody has

    made: Format = getattr(formats, TABLE["format"][name].rpartition(".")[2])()
    return made
