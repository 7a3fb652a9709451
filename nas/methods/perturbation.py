"""Perturbation-based selection: an operation is worth what the supernet loses without it (Wang et al. 2021, "Rethinking
Architecture Selection in Differentiable NAS")."""

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
Decided = dict[str, int | None]  # the candidate of a choice that is decided, None for an edge that is left out
RULES = ("published", "strict")


class Perturbation:
    """Decides one choice after the other by what the supernet loses without each candidate, then which edges stay.

    The supernet is the mixture with weights softmax(logits), whichever sampler trained it: the paper's is `softmax`,
    and with one that runs a single operation the mixture is not what was trained. Choices come in random order; without
    a candidate means its weight set to 0, the others as they are; the one kept gets weight 1; batch norms take the
    statistics of the batch. Then, group after group in random order, the edges whose removal costs least go until
    `count` are left.

    rules: ``published`` as in the authors' code: a round decides one choice of every kind of cell (what stands before
    the last slash of its key), by the metric alone, of equal candidates the first; while the edges of a group are
    compared, those of it that have already gone are in again; groups without a rival are left out.
    ``strict``: one choice a round; less is better of the metric without it, then of the loss; of equals the more
    probable candidate, then the first; edges that have gone stay out. Of equal edges the last goes by both rules.

    batches: of validation, None for the whole split but its last batch if that is not full. count: edges that every
    group keeps, None for all of them. exclude: candidates that are never kept; they stay in the mixture until their
    choice is decided.
    tune_epochs: of weight and logit steps between two rounds; tune_steps: that many steps instead. tune_lr,
    tune_lr_end, tune_momentum, tune_weight_decay, tune_grad_clip, tune_logits: see `Recipe`. The authors tune for 5
    epochs at a constant lr in NAS-Bench-201, for 10 with a cosine to 0.001 in the DARTS space. Weights and logits are
    put back at the end.
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
                if steps and number < rounds:  # nothing is decided after the last
                    tuning.run(decided, steps=steps)
        return {
            key: None if (index := decided[key]) is None else names[index] for key, names in arch.candidates.items()
        }

    def _rounds(
        self, arch: ArchParams, generator: torch.Generator
    ) -> tuple[list[list[str]], list[list[Sequence[str]]]]:
        """The choices, and the groups of edges, that are decided before the supernet is tuned on."""
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
        """The candidate of a choice without which the supernet is worst."""
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

        return names.index(min(probs, key=without))  # min() returns the first of equals

    def _weakest(self, edges: Sequence[str], tuning: Tuning, decided: Decided, judge: Judge) -> list[str]:
        """All but `count` edges of a group: those without which the supernet is best, one after the other."""
        supernet, kept, weakest = tuning.mixture(decided), list(edges), list[str]()

        def without(key: str) -> tuple[float, ...]:
            score = merit(judge, {**supernet, key: LEFT_OUT})
            return score[:1] if self.published else score

        while self.count is not None and len(kept) > self.count:
            weakest.append(max(reversed(kept), key=without))  # reversed: max() returns the first of equals
            kept.remove(weakest[-1])
            if not self.published:
                supernet[weakest[-1]] = LEFT_OUT
        return weakest


def merit(judge: Judge, supernet: Mapping[str, Gate]) -> tuple[float, float]:
    return judge.merit(judge.relaxed(itertools.repeat(supernet)))


def kind(key: str) -> str:
    """Of the cell that a choice is in: ``normal`` of ``normal/0-2``."""
    return key.rpartition("/")[0]


def abreast(items: Sequence[T], kinds: Sequence[str], generator: torch.Generator) -> list[list[T]]:
    """Rounds of one item of every kind, as long as there are some, each kind in random order."""
    lines = [
        shuffled([item for item, other in zip(items, kinds, strict=True) if other == one], generator)
        for one in dict.fromkeys(kinds)
    ]
    return [[item for item in turn if item is not None] for turn in itertools.zip_longest(*lines)]


def shuffled(items: Sequence[T], generator: torch.Generator) -> list[T]:
    return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]
