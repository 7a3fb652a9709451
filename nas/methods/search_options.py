"""The numbers and the objects that a search is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nas.methods.collapse import CollapseMonitor
from nas.methods.deriver import Deriver
from nas.methods.first_order import FirstOrder
from nas.methods.sampler import Sampler
from nas.methods.timed_limit import FileClock
from nas.training.job import at_least
from nas.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The numbers of a search.

    batch_size: of each level. weight_fraction: of the training examples train the weights, the rest the architecture;
    one_level: both learn from all. init_std: the logits start as init_std * N(0, 1). warmup_epochs, arch_every,
    arch_first: see `Order`. gap_batches: that the discretisation gap is measured on after each epoch; 0 for none.
    Raises ConfigError for a number out of its range.
    """

    epochs: int
    batch_size: int
    weight_fraction: float
    one_level: bool
    init_std: float
    warmup_epochs: int
    arch_every: int
    arch_first: bool
    gap_batches: int

    def __post_init__(self) -> None:
        at_least(1, search__epochs=self.epochs, search__arch_every=self.arch_every)
        at_least(0, search__init_std=self.init_std, search__warmup_epochs=self.warmup_epochs)
        at_least(0, search__gap_batches=self.gap_batches)

    def learns_after(self, steps: int) -> bool:
        """Whether the architecture takes a step at all, in epochs of `steps` steps."""
        return self.epochs * steps // self.arch_every > self.warmup_epochs * steps // self.arch_every


@dataclass(frozen=True, kw_only=True)
class SearchParts:
    """The objects that a search is made of. Where a function is named, it makes the part from what it is given.

    searcher: see `FirstOrder`. monitor: from `kinds`. weight_optim, arch_optim: from `params`. lr: of the weights, from
    `start`, the optimiser's own. regulariser: name -> a term of the architecture's loss, or what makes it from `arch`,
    `space` and `spec`. cap: ``parameters``, ``macs``, ``bytes`` or ``latency_ms`` -> the most that the derived network
    may have, or which part of the largest network: the search is pulled below it, see `nas.methods.cap`; several
    numbers of one name derive several networks, see `SearchJob.front`. file_times: makes what measures ``latency_ms``,
    `nas.adapt.FileClock`.
    """

    sampler: Sampler
    temperature: Schedule
    deriver: Deriver
    searcher: Callable[..., FirstOrder]
    monitor: Callable[..., CollapseMonitor]
    weight_optim: Callable[..., torch.optim.Optimizer]
    arch_optim: Callable[..., torch.optim.Optimizer]
    lr: Callable[..., Any]
    regulariser: Mapping[str, Any] = field(default_factory=dict)
    cap: Mapping[str, float | Sequence[float] | None] = field(default_factory=dict)
    file_times: Callable[[], FileClock | None] = lambda: None
