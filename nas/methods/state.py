"""The state of a search: everything that changes during it, and that a checkpoint holds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from nas.methods.sampler import LossSampler, Sampler, refuse_nan
from nas.methods.timed_limit import TimedLimit
from nas.runtime import distributed
from nas.runtime.buffers import of_processes, restore_unsaved, unsaved
from nas.runtime.nonfinite import ARCHITECTURE, WEIGHTS, Guard, naming
from nas.runtime.precision import Precision
from nas.runtime.rng import random_state, set_random_state
from nas.storage import checkpoint_file
from nas.supernet.arch_params import ArchParams
from nas.supernet.genotype import Genotype
from nas.training.frozen_parts import FrozenParts
from nas.training.held_objects import Stateful
from nas.training.meter import Meter
from nas.training.own_generators import OwnGenerators
from nas.training.task_state import TaskState


@dataclass
class SearchState:
    """Everything that changes during a search, and that a checkpoint holds.

    metric: the task's. sampler: draws fresh gates for every step. generator: its randomness, on the CPU. In the middle
    of an epoch, `step` steps of it are done and measured by the meters. There is no best genotype beside the last one:
    nothing is selected by a score on the way.
    """

    supernet: nn.Module
    arch: ArchParams
    weight_optim: Optimizer
    arch_optim: Optimizer
    generator: torch.Generator
    sampler: Sampler
    metric: str
    scaler: GradScaler = field(default_factory=Precision().scaler)  # of the losses, in fp16
    guard: Guard = field(default_factory=Guard)
    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the epoch after those
    seconds: float = 0.0  # that these took
    genotype: Genotype | None = None  # derived after the last epoch done
    collapsed: int = 0  # epochs in a row in which the derived architecture exceeded the monitor's limits
    stopped: str | None = None  # why the search ended before its last epoch, if it did
    metrics: dict[str, float] = field(default_factory=dict)  # of the last epoch done
    temperature: float = 1.0  # of the epoch that runs
    steps: int = 0  # an epoch has
    task: TaskState | None = None  # what the loss itself changes, if it may change something
    generators: OwnGenerators | None = None  # that the model, the sampler and others hold
    # Other objects by name, some of which may have a state: the searcher and the regulariser's terms.
    others: Mapping[str, Any] = field(default_factory=dict)
    timed: TimedLimit | None = None  # a cap on measured time, whose measurements the architecture learns from
    weights_meter: Meter = field(init=False)
    arch_meter: Meter = field(init=False)
    frozen: FrozenParts = field(init=False)  # of the supernet, since then

    def __post_init__(self) -> None:
        self.frozen = FrozenParts(self.supernet)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.step, self.seconds = 0, 0.0
        self.weights_meter, self.arch_meter = Meter(self.metric), Meter(self.metric)

    def ended(self, epochs: int) -> bool:
        """Whether a search of so many epochs is over."""
        return self.epoch == epochs or self.stopped is not None

    def agree_to_stop(self) -> None:
        """Ends the search in all processes if a hook has ended it in one of them. They call it together."""
        self.stopped = next((reason for reason in distributed.of_all(self.stopped) if reason is not None), None)

    def state_dict(self) -> dict[str, Any]:
        """Raises DivergenceError if it is not finite: it is not to be saved over one that is."""
        self.guard.check(WEIGHTS, self.supernet.parameters(), naming(self.supernet))
        self.guard.check(ARCHITECTURE, self.arch.parameters(), self.arch.naming)
        return {
            "supernet": self.supernet.state_dict(),
            "supernet_buffers": unsaved(self.supernet),
            "buffers_of_processes": of_processes(self.supernet),
            "arch": self.arch.state_dict(),
            "weight_optim": self.weight_optim.state_dict(),
            "arch_optim": self.arch_optim.state_dict(),
            "scaler": self.scaler.state_dict(),
            "guard": self.guard.state_dict(),
            "sampler": self.sampler.state_dict() if isinstance(self.sampler, Stateful) else {},
            "others": {name: one.state_dict() for name, one in self.others.items() if isinstance(one, Stateful)},
            "part_buffers": {name: unsaved(one) for name, one in self._modules().items()},
            "generator": self.generator.get_state(),
            "random": random_state(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "genotype": None if self.genotype is None else self.genotype.to_dict(),
            "collapsed": self.collapsed,
            "stopped": self.stopped,
            "metrics": self.metrics,
            "weights_meter": self.weights_meter.state_dict(),
            "arch_meter": self.arch_meter.state_dict(),
            "frozen": self.frozen.state_dict(),
            **({} if self.task is None else {"task": distributed.of_all(self.task.state_dict())}),
            **({} if self.generators is None else {"generators": distributed.of_all(self.generators.state_dict())}),
            **({} if self.timed is None else {"timed": self.timed.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any], *, source: str | Path) -> None:
        """Go on where `state` was taken. Raises CheckpointError, naming `source`, if it is of another search."""
        with checkpoint_file.taken_from(source):
            device = self.arch.logits.device
            checkpoint_file.restore(self.supernet, state["supernet"], source=source)
            restore_unsaved(self.supernet, state["supernet_buffers"])
            if buffers := state["buffers_of_processes"]:
                restore_unsaved(self.supernet, distributed.of_this_process(buffers))
            checkpoint_file.restore(self.arch, state["arch"], source=source)
            self.weight_optim.load_state_dict(state["weight_optim"])
            self.arch_optim.load_state_dict(state["arch_optim"])
            self.scaler.load_state_dict(state["scaler"])
            self.guard.load_state_dict(state["guard"])
            # A sampler of the user's own may have got a state since then.
            if isinstance(self.sampler, LossSampler) or (isinstance(self.sampler, Stateful) and state["sampler"]):
                self.sampler.load_state_dict(state["sampler"])
            for name, saved in state["others"].items():
                if isinstance(one := self.others.get(name), Stateful):
                    one.load_state_dict(saved)
            for name, one in self._modules().items():
                restore_unsaved(one, state["part_buffers"].get(name, {}))
            if self.task is not None:
                self.task.load_state_dict(distributed.of_this_process(state["task"]))
            if self.generators is not None:
                self.generators.load_state_dict(distributed.of_this_process(state["generators"]))
            self.generator.set_state(state["generator"])
            self.frozen.load_state_dict(state["frozen"])
            self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
            self.genotype = None if state["genotype"] is None else Genotype.from_dict(state["genotype"])
            self.collapsed, self.stopped, self.metrics = state["collapsed"], state["stopped"], state["metrics"]
            self.weights_meter.load_state_dict(state["weights_meter"], device=device)
            self.arch_meter.load_state_dict(state["arch_meter"], device=device)
            if self.timed is not None and "timed" in state:  # not where the cap is new
                self.timed.load_state_dict(state["timed"])
            set_random_state(state["random"])

    def _modules(self) -> dict[str, nn.Module]:
        """The parts that are modules, whose state dicts leave some buffers out."""
        return {
            name: one for name, one in {"sampler": self.sampler, **self.others}.items() if isinstance(one, nn.Module)
        }

    def check(self) -> None:
        """At the end of an epoch. Raises DivergenceError if a logit is not a number, or if processes have drifted
        apart."""
        with self.guard.at(self.epoch, self.steps - 1):
            refuse_nan(self.arch.keys, self.arch.entropy().isnan().tolist())
            distributed.check_equal_gates([*self.arch.parameters(), self.generator.get_state()])
            distributed.check_equal_weights(dict(self.supernet.named_parameters()))

    def finish_epoch(self, genotype: Genotype) -> None:
        """Take in what was derived after all steps of an epoch, and measure the epoch."""
        self.metrics = {
            **self.weights_meter.summary("weights"),
            **self.arch_meter.summary("arch"),
            "temperature": self.temperature,
            "lr/weights": float(self.weight_optim.param_groups[0]["lr"]),
            "lr/arch": float(self.arch_optim.param_groups[0]["lr"]),
            "seconds_per_step": self.seconds / self.steps,
            "examples_per_second": (self.weights_meter.examples + self.arch_meter.examples) / self.seconds,
            "genotype_changes": genotype.differing(self.genotype),
            **self.guard.metrics(),
            **dict(arch_metrics(self.arch)),
        }
        self.genotype = genotype
        self.epoch += 1
        self.begin_epoch()


def arch_metrics(arch: ArchParams) -> Iterator[tuple[str, float]]:
    """The entropy of every choice, its share where choices are weighed, and the probability of every candidate."""
    entropies = arch.entropy().tolist()
    for key, entropy in zip(arch.keys, entropies, strict=True):
        yield f"entropy/{key}", entropy
    yield "entropy/mean", sum(entropies) / len(entropies)  # last, as a choice may be called so
    if arch.share_logits is not None:
        for key, share in arch.named_shares().items():
            yield f"share/{key}", share
    for key, probs in arch.named_probs().items():
        for name, p in probs.items():
            yield f"probability/{key}/{name}", p
