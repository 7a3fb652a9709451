"""Hooks that run after each epoch of a search: derivation, collapse, discretisation gap, size, regularisers."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nas.methods.collapse import CollapseMonitor
from nas.methods.deriver import Deriver, JudgingDeriver
from nas.methods.discretisation_gap import Gap
from nas.methods.regulariser import Sum
from nas.methods.sampler import Sampler
from nas.methods.state import SearchState
from nas.methods.supernet_score import Judge
from nas.runtime import distributed
from nas.supernet.arch_params import ArchParams
from nas.supernet.genotype import Genotype
from nas.training.hooks import Hook, Hooks
from nas.training.schedule import progress


class Derivation:
    """Derives a genotype after each epoch. Stops a collapsed search if the monitor's `stop` is set.

    space: the name of the space. judge: makes a judge that scores on a given number of batches, for a `JudgingDeriver`,
    which decides once, after the last epoch. warmup_epochs: the number of first epochs without the monitor.
    within: called after the last epoch with a function that derives. Calls it once or several times, and returns the
    decision, see `nas.methods.timed_limit.derive_within`.
    """

    def __init__(
        self,
        space: str,
        deriver: Deriver,
        *,
        monitor: CollapseMonitor,
        judge: Callable[[int | None], Judge],
        warmup_epochs: int = 0,
        within: Callable[[Callable[[], dict[str, str | None]]], dict[str, str | None]] = lambda derive: derive(),
    ) -> None:
        self._space = space
        self._within = within
        self._deriver = deriver
        self._monitor = monitor
        self._judge = judge
        self._warmup_epochs = warmup_epochs
        self.has_decided = False
        self._before: Genotype | None = None  # of the epoch before

    def __call__(self, state: SearchState, last: bool) -> Genotype:
        state.agree_to_stop()  # a hook may have ended the search after a step
        chosen = self._deriver(state.arch)
        if state.epoch >= self._warmup_epochs:
            self._watch(state, chosen)
        self.has_decided, self._before = last or state.stopped is not None, state.genotype
        return self._decided(state) if self.has_decided else Genotype(self._space, chosen)

    def decide(self, state: SearchState) -> None:
        """Derives as after the last epoch, where a hook has ended the search when the epoch was derived already."""
        self.has_decided, state.genotype = True, self._decided(state)
        state.metrics["genotype_changes"] = state.genotype.differing(self._before)

    def _decided(self, state: SearchState) -> Genotype:
        return Genotype(self._space, self._within(lambda: decided(self._deriver, state.arch, self._judge)))

    def _watch(self, state: SearchState, chosen: Mapping[str, str | None]) -> None:
        """Warns once if a limit of the monitor has been exceeded for `patience` epochs."""
        monitor, counts = self._monitor, self._monitor.kinds.count(chosen)
        state.collapsed = monitor.epochs_in_a_row(state.collapsed, counts)
        if state.collapsed == monitor.patience and (exceeded := monitor.exceeded(counts)):
            reason = f"epoch {state.epoch + 1}: {exceeded} for {monitor.patience} epochs"
            if distributed.first():
                collapse = "has collapsed and stops" if monitor.stop else "seems to collapse"
                print(f"warning: the search {collapse}, {reason}", file=sys.stderr)
            state.stopped = reason if monitor.stop else state.stopped


def decided(deriver: Deriver, arch: ArchParams, judge: Callable[[int | None], Judge]) -> dict[str, str | None]:
    """Returns the choices that a deriver makes after the last epoch. judge: as in `Derivation`."""
    if isinstance(deriver, JudgingDeriver):
        asked = judge(deriver.batches)
        chosen = deriver.judged(arch, asked)
        if asked.undefined == asked.scores > 0 and distributed.first():
            print(
                f"warning: the losses of all {asked.scores} networks that the deriver compared are NaN or infinite, so "
                "they decided nothing; lower weight_optim.lr, or derive by the logits alone with another deriver",
                file=sys.stderr,
            )
        return chosen
    return deriver(arch)


class Stopped(Hook):
    """Decides and measures again if a hook has ended the search. Runs after those hooks, before the state is saved."""

    def __init__(self, derivation: Derivation, measurements: Sequence[Hook]) -> None:
        self._derivation = derivation
        self._measurements = measurements

    def after_epoch(self, state: Any) -> None:
        state.agree_to_stop()
        if state.stopped is not None and not self._derivation.has_decided:
            self._derivation.decide(state)
            Hooks(self._measurements).after_epoch(state)


class Collapse(Hook):
    """Logs the numbers of skips and of operations without parameters in the derived architecture."""

    def __init__(self, monitor: CollapseMonitor) -> None:
        self._kinds = monitor.kinds

    def after_epoch(self, state: Any) -> None:
        counts = self._kinds.count(state.genotype.choices)
        state.metrics |= {"collapse/skips": counts.skips, "collapse/parameter_free": counts.parameter_free}


class Regularisers(Hook):
    """Logs the regularisers' terms of the architecture loss. epochs: the number of epochs of the search."""

    def __init__(self, regulariser: Sum | None, *, epochs: int) -> None:
        self._regulariser = regulariser
        self._epochs = epochs

    def after_epoch(self, state: Any) -> None:
        if self._regulariser is not None:
            state.metrics |= self._regulariser.logged(state.arch, progress(state.epoch - 1, self._epochs))


class Description(Hook):
    """Logs metrics of a genotype: its size, and its accuracies in a benchmark."""

    def __init__(self, describe: Callable[[Genotype], Mapping[str, float]]) -> None:
        self._describe = describe

    def after_epoch(self, state: Any) -> None:
        state.metrics |= self._describe(state.genotype)


class DiscretisationGap(Hook):
    """Scores the supernet under the gates of the search and with the derived operations. judge: makes the judge."""

    def __init__(self, judge: Callable[[], Judge], *, sampler: Sampler) -> None:
        self._judge = judge
        self._sampler = sampler

    def after_epoch(self, state: Any) -> None:
        gap = Gap.measure(
            self._judge(),
            arch=state.arch,
            sampler=self._sampler,
            temperature=state.temperature,
            chosen=state.genotype.choices,
        )
        state.metrics |= gap.metrics()
