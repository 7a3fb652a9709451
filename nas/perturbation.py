"""Perturbation-based selection: an operation is worth what the supernet loses without it (Wang et al. 2021, "Rethinking
Architecture Selection in Differentiable NAS")."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from nas.arch import ArchParams
from nas.choice import LEFT_OUT, Gate
from nas.deriver import allowed, from_logits, groups
from nas.errors import ConfigError
from nas.judge import Judge
from nas.sampler import Gates

T = TypeVar("T")


class Perturbation:
    """Decides one choice after the other by what the supernet loses without each candidate, then which edges stay.

    The supernet is the mixture with weights softmax(logits), whichever sampler trained it: the paper's is `softmax`,
    and with one that runs a single operation the mixture is not what was trained. As in the authors' code: choices
    come in random order; without a candidate means its weight set to 0, the others as they are; the one kept gets
    weight 1; batch norms take the statistics of the batch. Then, group after group in random order, the edge whose
    removal costs least goes until `count` are left.
    Less is better of the metric without it, then of the loss; of equals the more probable candidate, then the first;
    of equal edges the last goes.

    batches: of validation. count: edges that every group keeps, None for all of them. exclude: candidates that are
    never kept; they stay in the mixture until their choice is decided. tune_steps, tune_lr: weight steps between
    decisions, on batches of the weights' split; the authors take epochs of them. The weights are put back at the end.
    """

    def __init__(
        self,
        *,
        batches: int = 4,
        count: int | None = None,
        exclude: Sequence[str] = (),
        tune_steps: int = 0,
        tune_lr: float = 0.0025,
    ) -> None:
        if batches < 1:
            raise ConfigError(f"deriver.batches must be at least 1, got {batches}", fix="set deriver.batches=4")
        if tune_steps < 0 or not tune_lr > 0:
            raise ConfigError(
                f"deriver.tune_steps must be >= 0 and deriver.tune_lr > 0, got {tune_steps} and {tune_lr:g}",
                fix="set deriver.tune_steps=0 for no tuning",
            )
        self.batches = batches
        self.count = count
        self.exclude = tuple(exclude)
        self.tune_steps = tune_steps
        self.tune_lr = tune_lr
        self.rule = from_logits(count=count, exclude=exclude)

    def __call__(self, arch: ArchParams) -> dict[str, str | None]:
        return self.rule(arch)

    def judged(self, arch: ArchParams, judge: Judge) -> dict[str, str | None]:
        generator = judge.generator()
        rows = dict(zip(arch.keys, arch.probs().detach(), strict=True))
        # Weighed edges keep their shares to the end: less of a node's sum is lost with those that are small.
        supernet = Gates(arch.probs(), shares=arch.shares()).by_key(arch.keys, differentiable=False)
        with judge.weights_put_back() if self.tune_steps else contextlib.nullcontext():
            chosen: dict[str, str | None] = dict.fromkeys(arch.keys)
            for key in shuffled(arch.keys, generator):
                chosen[key] = name = self._strongest(key, supernet, rows[key], arch, judge)
                supernet[key] = Gate(None, arch.candidates[key].index(name), share=supernet[key].share)
                self._tune(supernet, judge)
            competing = [] if self.count is None else list(groups(arch).values())
            for edges in shuffled(competing, generator):
                for key in self._weakest(edges, supernet, judge):
                    chosen[key] = None
                    supernet[key] = LEFT_OUT
                self._tune(supernet, judge)
        return chosen

    def _strongest(self, key: str, supernet: Mapping[str, Gate], row: Tensor, arch: ArchParams, judge: Judge) -> str:
        """The candidate of a choice without which the supernet is worst."""
        names = arch.candidates[key]
        probs = allowed(dict(zip(names, row.tolist(), strict=False)), self.exclude)
        if len(probs) == 1:
            return next(iter(probs))

        def without(name: str) -> tuple[tuple[float, float], float]:
            weights = row.clone()
            weights[names.index(name)] = 0.0
            gate = Gate(weights.unbind(), None, share=supernet[key].share)
            return merit(judge, {**supernet, key: gate}), -probs[name]

        return min(probs, key=without)

    def _weakest(self, edges: Sequence[str], supernet: Mapping[str, Gate], judge: Judge) -> list[str]:
        """All but `count` edges of a group: those without which the supernet is best, one after the other."""
        supernet, kept, weakest = dict(supernet), list(edges), list[str]()
        while self.count is not None and len(kept) > self.count:
            # reversed: max() returns the first of equals.
            weakest.append(max(reversed(kept), key=lambda key: merit(judge, {**supernet, key: LEFT_OUT})))
            kept.remove(weakest[-1])
            supernet[weakest[-1]] = LEFT_OUT
        return weakest

    def _tune(self, supernet: Mapping[str, Gate], judge: Judge) -> None:
        if self.tune_steps:
            judge.tune(supernet, steps=self.tune_steps, lr=self.tune_lr)


def merit(judge: Judge, supernet: Mapping[str, Gate]) -> tuple[float, float]:
    return judge.merit(judge.relaxed(itertools.repeat(supernet)))


def shuffled(items: Sequence[T], generator: torch.Generator) -> list[T]:
    return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]
