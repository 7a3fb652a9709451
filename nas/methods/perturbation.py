"""Perturbation-based selection: the value of an operation is the drop of the supernet's score without it.

Source: Wang et al. 2021, "Rethinking Architecture Selection in Differentiable NAS".
"""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from nas.errors import ConfigError
from nas.methods.deriver import allowed, from_logits, groups
from nas.methods.supernet_score import Judge
from nas.methods.tuning import Recipe, Tuning, check
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import LEFT_OUT, Gate

T = TypeVar("T")
Decided = dict[str, int | None]  # key of a decided choice -> index of its candidate, None for a removed edge
RULES = ("published", "strict")


class Perturbation:
    """Keeps, choice after choice, the candidate whose removal hurts the supernet most. Then drops the weakest edges.

    The supernet runs the mixture with weights softmax(logits), with any sampler. The paper's sampler is `softmax`; a
    sampler that runs a single operation has not trained this mixture. Choices come in random order. To remove a
    candidate, its weight is set to 0 and the other weights stay; the kept candidate gets weight 1. Batch norms use the
    statistics of the batch. Then, for the groups in random order, the edges whose removal costs least are removed until
    `count` edges are left.

    rules: ``published``: as in the authors' code. A round decides one choice of every kind of cell (the part of the key
    before the last slash) by the metric alone; the first candidate wins a tie. While the edges of a group are compared,
    removed edges of the group run again. Groups with at most `count` edges are skipped.
    ``strict``: a round decides one choice. A candidate is kept if the metric without it is worst, then the loss; the
    more probable candidate wins a tie, then the first. Removed edges stay removed. With both rules the last of equal
    edges is removed.

    batches: validation batches, None for the whole split without a partial last batch. count: edges that every group
    keeps, None for all edges. exclude: candidates that are never kept; they stay in the mixture until their choice is
    decided.
    tune_epochs: epochs of weight and logit steps between two rounds. tune_steps: a number of steps instead of epochs.
    tune_lr, tune_lr_end, tune_momentum, tune_weight_decay, tune_grad_clip, tune_logits: see `Recipe`. The authors tune
    for 5 epochs at a constant lr in NAS-Bench-201, and for 10 epochs with a cosine to 0.001 in the DARTS space. Weights
    and logits are restored at the end.
    """

    def __init__(
        self,
        *,
        rules: str = "published",
        batches: int | None = None,
        count: int | None = None,
        exclude: Sequence[str] = (),
        tune_epochs: int = 5,
        tune_steps: int | None = None,
        tune_lr: float = 0.0025,
        tune_lr_end: float | None = None,
        tune_momentum: float = 0.9,
        tune_weight_decay: float = 3e-4,
        tune_grad_clip: float = 5.0,
        tune_logits: bool = True,
    ) -> None:
        if rules not in RULES:
            raise ConfigError(
                f"deriver.rules must be one of {', '.join(RULES)}, got {rules!r}", fix="set deriver.rules=published"
            )
        if batches is not None and batches < 1:
            raise ConfigError(f"deriver.batches must be at least 1, got {batches}", fix="set deriver.batches=4")
        for name, value in (("tune_epochs", tune_epochs), ("tune_steps", tune_steps)):
            if value is not None and value < 0:
                raise ConfigError(
                    f"deriver.{name} must be >= 0, got {value}", fix=f"set deriver.{name}=0 for no tuning"
                )
        self.published = rules == "published"
        self.batches = batches
        self.count = count
        self.exclude = tuple(exclude)
        self.tune_epochs = tune_epochs
        self.tune_steps = tune_steps
        self.recipe = Recipe(
            lr=tune_lr,
            lr_end=tune_lr_end,
            momentum=tune_momentum,
            weight_decay=tune_weight_decay,
            grad_clip=tune_grad_clip,
            logits=tune_logits,
        )
        check(self.recipe)
        self.rule = from_logits(count=count, exclude=exclude)

    def __call__(self, arch: ArchParams) -> dict[str, str | None]:
        return self.rule(arch)

    def judged(self, arch: ArchParams, judge: Judge) -> dict[str, str | None]:
        generator = judge.generator()
        by_choice, by_group = self._rounds(arch, generator)
        steps = self.tune_epochs * judge.steps if self.tune_steps is None else self.tune_steps
        rounds = len(by_choice) + len(by_group)
        decided: Decided = {}
        with judge.weights_put_back() if steps else contextlib.nullcontext():
            tuning = Tuning(judge, arch, self.recipe, total=steps * (rounds - 1))
            for number, (keys, competing) in enumerate(
                [*((keys, []) for keys in by_choice), *(([], edges) for edges in by_group)], 1
            ):
                for key in keys:
                    decided[key] = self._strongest(key, tuning, decided, judge)
                for edges in competing:
                    for key in self._weakest(edges, tuning, decided, judge):
                        decided[key] = None
                if steps and number < rounds:  # no decision follows the last round
                    tuning.run(decided, steps=steps)
        return {
            key: None if (index := decided[key]) is None else names[index] for key, names in arch.candidates.items()
        }

    def _rounds(
        self, arch: ArchParams, generator: torch.Generator
    ) -> tuple[list[list[str]], list[list[Sequence[str]]]]:
        """The rounds: the choices of each round, then the groups of edges of each round. Tuning follows each round."""
        competing = [] if self.count is None else list(groups(arch).values())
        if not self.published:
            keys = shuffled(arch.keys, generator)
            return [[key] for key in keys], [[edges] for edges in shuffled(competing, generator)]
        competing = [edges for edges in competing if self.count is not None and len(edges) > self.count]
        return (
            abreast(arch.keys, [kind(key) for key in arch.keys], generator),
            abreast(competing, [kind(edges[0]) for edges in competing], generator),
        )

    def _strongest(self, key: str, tuning: Tuning, decided: Decided, judge: Judge) -> int:
        """The index of the candidate whose removal makes the supernet worst."""
        arch = tuning.arch
        names, row = arch.candidates[key], arch.probs().detach()[arch.keys.index(key)]
        probs = allowed(dict(zip(names, row.tolist(), strict=False)), self.exclude)
        if len(probs) == 1:
            return names.index(next(iter(probs)))
        supernet = tuning.mixture(decided)

        def without(name: str) -> tuple[float, ...]:
            weights = row.clone()
            weights[names.index(name)] = 0.0
            gate = Gate(weights.unbind(), None, share=supernet[key].share)
            score = merit(judge, {**supernet, key: gate})
            return score[:1] if self.published else (*score, -probs[name])

        return names.index(min(probs, key=without))  # min() returns the first on a tie

    def _weakest(self, edges: Sequence[str], tuning: Tuning, decided: Decided, judge: Judge) -> list[str]:
        """The edges of a group to remove, one after the other, until `count` are left.

        Each time the edge is picked without which the supernet is best.
        """
        supernet, kept, weakest = tuning.mixture(decided), list(edges), list[str]()

        def without(key: str) -> tuple[float, ...]:
            score = merit(judge, {**supernet, key: LEFT_OUT})
            return score[:1] if self.published else score

        while self.count is not None and len(kept) > self.count:
            weakest.append(max(reversed(kept), key=without))  # reversed: max() returns the first on a tie
            kept.remove(weakest[-1])
            if not self.published:
                supernet[weakest[-1]] = LEFT_OUT
        return weakest


def merit(judge: Judge, supernet: Mapping[str, Gate]) -> tuple[float, float]:
    return judge.merit(judge.relaxed(itertools.repeat(supernet)))


def kind(key: str) -> str:
    """The kind of cell that a choice belongs to: ``normal`` for ``normal/0-2``."""
    return key.rpartition("/")[0]


def abreast(items: Sequence[T], kinds: Sequence[str], generator: torch.Generator) -> list[list[T]]:
    """Splits items into rounds with one item of every kind that has items left. Each kind is in random order."""
    lines = [
        shuffled([item for item, other in zip(items, kinds, strict=True) if other == one], generator)
        for one in dict.fromkeys(kinds)
    ]
    return [[item for item in turn if item is not None] for turn in itertools.zip_longest(*lines)]


def shuffled(items: Sequence[T], generator: torch.Generator) -> list[T]:
    return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]
