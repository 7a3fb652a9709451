"""Runs a supernet on two examples before a search, to find what does not suit the data or the task."""

from typing import Any

from torch import Tensor, nn

from nas.data.inputs import each
from nas.data.loader import Loader
from nas.methods.operation_kinds import Kinds, kinds_of
from nas.spaces.mixed_edges import CellSpace
from nas.supernet.idle_choices import warn_of_idle_choices
from nas.supernet.shape_check import check_shapes
from nas.training.job import Job, taking, two_of
from nas.training.put_back import all_put_back
from nas.training.unsaved_numbers import UnsavedNumbers


def check_model(supernet: nn.Module, job: Job, loader: Loader) -> Kinds:
    """Returns the kinds of the candidates. The state of the supernet is put back, as it may count its passes, say.

    loader: of the architecture's split. Raises SpaceError, DataError or ConfigError.
    """
    numbers = UnsavedNumbers({"augment": job.data.augment})
    whole = next(loader.epoch(0))
    numbers.say_which_changed()
    inputs, targets = two_of(whole)
    before = [one._version for one in each(inputs)]
    with all_put_back([supernet], device=targets.device):
        with taking(supernet, inputs):
            outputs = check_shapes(supernet, inputs)
        if before != [one._version for one in each(inputs)]:  # a search runs several networks on one batch
            supernet.register_forward_pre_hook(with_inputs_of_its_own)
        job.check_outputs(outputs, targets)
        job.check_taught(supernet, inputs, outputs)
        job.check_parts(outputs, whole[1])
        if not isinstance(job.space, CellSpace):  # published cells have none
            warn_of_idle_choices(supernet, inputs)
        return kinds_of(supernet, inputs)


def with_inputs_of_its_own(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward hook that gives a model copies of its inputs, which it writes into."""
    return tuple(one.clone() if isinstance(one, Tensor) else one for one in inputs)
