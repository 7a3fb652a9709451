"""The search: alternate the two levels over the epochs, cool down, derive."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from nas.cli.progress_bar import Progress
from nas.data.loader import Loader, search_batches
from nas.methods.collapse import CollapseMonitor
from nas.methods.deriver import Deriver, JudgingDeriver
from nas.methods.first_order import FirstOrder
from nas.methods.regulariser import Sum
from nas.methods.sampler import LossSampler, Sampler, refuse_nan
from nas.methods.supernet_score import Judge
from nas.runtime import distributed
from nas.runtime.buffers import restore_unsaved, unsaved
from nas.runtime.nonfinite import ARCHITECTURE, WEIGHTS, Guard, naming
from nas.runtime.rng import random_state, set_random_state
from nas.storage import checkpoint_file
from nas.supernet.arch_params import ArchParams
from nas.supernet.genotype import Genotype
from nas.training.meter import Meter
from nas.training.schedule import CosineByEpoch, Schedule, learning_rate, progress, set_lr


@dataclass
class SearchState:
    """All that a search changes: what a checkpoint of it holds.

    metric: the task's. guard, sampler: the searcher's. In the middle of an epoch, `step` steps of it are done and
    measured by the meters. There is no best genotype beside the last one: nothing is selected by a score on the way.
    """

    supernet: nn.Module
    arch: ArchParams
    weight_optim: Optimizer
    arch_optim: Optimizer
    generator: torch.Generator
    scaler: GradScaler  # of the losses, in fp16
    metric: str
    guard: Guard = field(default_factory=Guard)
    sampler: Sampler | None = None
    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the epoch after those
    seconds: float = 0.0  # that these took
    genotype: Genotype | None = None  # derived after the last epoch done
    collapsed: int = 0  # epochs in a row in which the derived architecture exceeded the monitor's limits
    stopped: str | None = None  # why the search ended before its last epoch, if it did
    metrics: dict[str, float] = field(default_factory=dict)  # of the last epoch done
    weights_meter: Meter = field(init=False)
    arch_meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.step, self.seconds = 0, 0.0
        self.weights_meter, self.arch_meter = Meter(self.metric), Meter(self.metric)

    def state_dict(self) -> dict[str, Any]:
        """Raises DivergenceError if it is not finite: it is not to be saved over one that is."""
        self.guard.check(WEIGHTS, self.supernet.parameters(), naming(self.supernet))
        self.guard.check(ARCHITECTURE, self.arch.parameters(), self.arch.naming)
        return {
            "supernet": self.supernet.state_dict(),
            "supernet_buffers": unsaved(self.supernet),
            "arch": self.arch.state_dict(),
            "weight_optim": self.weight_optim.state_dict(),
            "arch_optim": self.arch_optim.state_dict(),
            "scaler": self.scaler.state_dict(),
            "guard": self.guard.state_dict(),
            "sampler": self.sampler.state_dict() if isinstance(self.sampler, LossSampler) else {},
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
        }

    def load_state_dict(self, state: dict[str, Any], *, source: str | Path) -> None:
        """Go on where `state` was taken. Raises CheckpointError, naming `source`, if it is of another search."""
        with checkpoint_file.taken_from(source):
            device = self.arch.logits.device
            checkpoint_file.restore(self.supernet, state["supernet"], source=source)
            restore_unsaved(self.supernet, state.get("supernet_buffers", {}))
            checkpoint_file.restore(self.arch, state["arch"], source=source)
            self.weight_optim.load_state_dict(state["weight_optim"])
            self.arch_optim.load_state_dict(state["arch_optim"])
            self.scaler.load_state_dict(state["scaler"])
            self.guard.load_state_dict(state["guard"])
            if isinstance(self.sampler, LossSampler):
                self.sampler.load_state_dict(state["sampler"])
            self.generator.set_state(state["generator"])
            self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
            self.genotype = None if state["genotype"] is None else Genotype.from_dict(state["genotype"])
            self.collapsed, self.stopped, self.metrics = state["collapsed"], state["stopped"], state["metrics"]
            self.weights_meter.load_state_dict(state["weights_meter"], device=device)
            self.arch_meter.load_state_dict(state["arch_meter"], device=device)
            set_random_state(state["random"])


@dataclass(frozen=True)
class Order:
    """When the architecture takes a step beside the weights, which take one on every batch.

    warmup_epochs: first epochs, of all, in which the logits stay as they are. arch_every: weight steps to one
    architecture step. arch_first: whether it comes before the weight step of its batch, as in DARTS, or after it.
    """

    warmup_epochs: int = 0
    arch_every: int = 1
    arch_first: bool = False


def search(
    state: SearchState,
    *,
    searcher: FirstOrder,
    weight_loader: Loader,
    arch_loader: Loader,
    epochs: int,
    temperature: Schedule,
    lr: Schedule | CosineByEpoch,
    order: Order,
    deriver: Deriver,
    judge: Callable[[int | None], Judge],
    space_name: str,
    measure: Callable[[Genotype, float], Mapping[str, float]],
    regulariser: Sum | None,
    monitor: CollapseMonitor,
    bar: Progress,
    after_step: Callable[[], None],
    on_epoch: Callable[[], None],
) -> Genotype:
    """Run the search from where `state` is to the end, or until the monitor stops it, and return the genotype of the
    last epoch.

    temperature: by epoch, so that the first epoch has exactly its start and the last exactly its end.
    lr: of the weights, by step or by epoch. judge: one that looks at so many batches, for a `JudgingDeriver`.
    measure: metrics of a derived genotype at a temperature. regulariser: the searcher's, to be logged.
    after_step, on_epoch: called when the state has taken in a step, or an epoch with its metrics, to save and to log.
    Raises DivergenceError, naming epoch, step, level and what it is, when something is not finite any more.
    """
    steps = len(weight_loader)
    while state.epoch < epochs and state.stopped is None:
        epoch, weights, arch = state.epoch, state.weights_meter, state.arch_meter
        done = progress(epoch, epochs)
        tau = temperature(done)
        started = time.perf_counter() - state.seconds
        batches = search_batches(weight_loader, arch_loader, epoch, start=state.step)
        for step, (weight_batch, arch_batch) in enumerate(batches, state.step):
            set_lr(state.weight_optim, learning_rate(lr, epoch, step, steps=steps, epochs=epochs))
            learns = epoch >= order.warmup_epochs and (epoch * steps + step + 1) % order.arch_every == 0
            with state.guard.at(epoch, step):
                if not learns:
                    weights.add(searcher.weight_step(weight_batch, tau))
                elif order.arch_first:
                    arch.add(searcher.arch_step(arch_batch, weight_batch, tau, done))
                    weights.add(searcher.weight_step(weight_batch, tau))
                else:
                    first, *others = searcher.draw_ahead(tau)
                    weights.add(searcher.weight_step(weight_batch, tau, first))
                    arch.add(searcher.arch_step(arch_batch, weight_batch, tau, done, others))
            bar.step(epoch, (step + 1) / steps)
            state.step, state.seconds = step + 1, time.perf_counter() - started
            after_step()
        seconds = state.seconds

        with state.guard.at(epoch, steps - 1):
            refuse_nan(state.arch.keys, state.arch.entropy().isnan().tolist())
            distributed.check_equal_gates([*state.arch.parameters(), state.generator.get_state()])
            distributed.check_equal_weights(dict(state.supernet.named_parameters()))
        chosen = deriver(state.arch)
        if epoch >= order.warmup_epochs:
            watch(state, epoch, chosen, monitor, bar)
        last = epoch + 1 == epochs or state.stopped is not None
        if last and isinstance(deriver, JudgingDeriver):
            chosen = deriver.judged(state.arch, judge(deriver.batches))
        derived = Genotype(space_name, chosen)
        counts = monitor.kinds.count(chosen)
        metrics = {
            **weights.summary("weights"),
            **arch.summary("arch"),
            "temperature": tau,
            "lr/weights": float(state.weight_optim.param_groups[0]["lr"]),
            "lr/arch": float(state.arch_optim.param_groups[0]["lr"]),
            "seconds_per_step": seconds / steps,
            "examples_per_second": (weights.examples + arch.examples) / seconds,
            "genotype_changes": derived.differing(state.genotype),
            **state.guard.metrics(),
            "collapse/skips": counts.skips,
            "collapse/parameter_free": counts.parameter_free,
            **({} if regulariser is None else regulariser.logged(state.arch, done)),
            **measure(derived, tau),
            **dict(arch_metrics(state.arch)),
        }
        state.epoch, state.genotype, state.metrics = epoch + 1, derived, metrics
        state.begin_epoch()
        bar.epoch(epoch, metrics)
        on_epoch()
    assert state.genotype is not None  # epochs >= 1, checked by whoever configured the search
    return state.genotype


def watch(
    state: SearchState, epoch: int, chosen: Mapping[str, str | None], monitor: CollapseMonitor, bar: Progress
) -> None:
    """Warn, once, when what the logits derive has exceeded the monitor's limits for long enough, and note that the
    search is to stop if that is what the monitor is set to."""
    counts = monitor.kinds.count(chosen)
    state.collapsed = monitor.epochs_in_a_row(state.collapsed, counts)
    if state.collapsed == monitor.patience and (exceeded := monitor.exceeded(counts)):
        reason = f"epoch {epoch + 1}: {exceeded} for {monitor.patience} epochs"
        bar.warn(f"the search {'has collapsed and stops' if monitor.stop else 'seems to collapse'}, {reason}")
        state.stopped = reason if monitor.stop else None


def arch_metrics(arch: ArchParams) -> Iterator[tuple[str, float]]:
    """The entropy of every choice, its share where choices are weighed, and the probability of every candidate."""
    entropies = arch.entropy().tolist()
    yield "entropy/mean", sum(entropies) / len(entropies)
    for key, entropy in zip(arch.keys, entropies, strict=True):
        yield f"entropy/{key}", entropy
    if arch.share_logits is not None:
        for key, share in arch.named_shares().items():
            yield f"share/{key}", share
    for key, probs in arch.named_probs().items():
        for name, p in probs.items():
            yield f"probability/{key}/{name}", p
