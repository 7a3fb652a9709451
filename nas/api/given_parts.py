"""Restores the states of the objects that a run is given, so that the next run begins with the same states."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from nas.training.held_objects import Stateful
from nas.training.job import Job
from nas.training.own_generators import OwnGenerators
from nas.training.put_back import all_put_back
from nas.training.task import Task
from nas.training.task_state import TaskState

HELD = ("build_model", "sampler", "searcher", "deriver", "task", "augment", "policy")


@contextlib.contextmanager
def given_back(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Restores at the end what a checkpoint would hold of the arguments: the buffers of a loss, random generators, and
    objects with `state_dict` and `load_state_dict`. Other objects are left alone, e.g. a list of what was seen.

    Not copies of the objects: a hook may hold one of them, to change it or to read it.
    """
    terms = arguments.get("regulariser")
    parts = {name: arguments.get(name) for name in HELD} | (dict(terms) if isinstance(terms, Mapping) else {})
    task, generators = TaskState(parts["task"], augment=(parts["augment"], parts["policy"])), OwnGenerators(parts)
    states = generators.state_dict()
    stateful = [parts[name] for name in ("sampler", "deriver", *(terms if isinstance(terms, Mapping) else ()))]
    try:
        with all_put_back([one for one in stateful if isinstance(one, Stateful)], device=torch.device("cpu")):
            yield
    finally:
        task.reset()
        generators.put(states)


def kept(job: Job) -> Task:
    """The task as the training leaves it, to score by: a copy, if the training has changed it and it can be copied."""
    with contextlib.suppress(Exception):
        return copy.deepcopy(job.task) if job.task_state.state_dict() else job.task
    return job.task
