"""Trains the weights, and the logits of undecided choices, between the decisions of a deriver."""

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nas.data.inputs import Batch, each
from nas.data.loader import search_batches
from nas.errors import ConfigError
from nas.methods.first_order import weights_frozen
from nas.methods.sampler import Gates
from nas.methods.supernet_score import Judge
from nas.runtime.modes import put_modes
from nas.runtime.nonfinite import ARCHITECTURE, Level, naming
from nas.runtime.precision import take_step
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import LEFT_OUT, Gate, gates
from nas.supernet.undisturbed import undisturbed
from nas.training.schedule import CosineByEpoch, set_lr
from nas.training.weighing import WeighedLoss

TUNING = Level("weights in tuning", "deriver.tune_lr")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of the weights' SGD.

    lr_end: the final value of a cosine by epoch over the whole tuning, None for a constant lr. grad_clip: 0 for no
    clipping. logits: whether the logits take a step before each step of the weights, as in the search.
    """

    lr: float = 0.0025
    lr_end: float | None = None
    momentum: float = 0.9
    weight_decay: float = 3e-4
    grad_clip: float = 5.0
    logits: bool = True


class Tuning:
    """Takes steps under the mixture softmax(logits) of undecided choices and the one candidate of decided choices.

    The weights have a new optimiser, which continues from call to call. The logits and their optimiser are copies, so
    that the search keeps its own. Use inside `Judge.weights_put_back`.
    total: the number of steps of all calls together, for the schedule.
    """

    def __init__(self, judge: Judge, arch: ArchParams, recipe: Recipe, *, total: int) -> None:
        self.judge = judge
        self.recipe = recipe
        self.arch = arch
        self.arch_optim: torch.optim.Optimizer | None = None
        if recipe.logits and total:
            self.arch, self.arch_optim = copy.deepcopy((arch, judge.logits_optimizer()))
        self.weights = [weight for weight in judge.supernet.parameters() if weight.requires_grad]
        self.optim = (  # a model may be without weights
            torch.optim.SGD(self.weights, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
            if self.weights
            else None
        )
        self.scaler, self.arch_scaler = judge.precision.scaler(), judge.precision.scaler()
        self.epochs = max(1, -(-total // judge.steps))
        self.done = 0

    def mixture(self, decided: Mapping[str, int | None], *, differentiable: bool = False) -> dict[str, Gate]:
        """The gates of all choices. decided: key -> index of the decided candidate, None for a removed edge."""
        mixed = Gates(self.arch.probs(), shares=self.arch.shares())
        by_key = mixed.by_key(self.arch.keys, differentiable=differentiable)
        return by_key | {
            key: LEFT_OUT if index is None else Gate(None, index, share=by_key[key].share)
            for key, index in decided.items()
        }

    def run(self, decided: Mapping[str, int | None], *, steps: int) -> None:
        judge, supernet = self.judge, self.judge.supernet
        # As in the search, in which parts of a model may be frozen in evaluation mode.
        modes = [(module, module.training or not supernet.training) for module in supernet.modules()]
        with undisturbed(supernet, seed=judge.noise):
            put_modes(modes)
            while steps > 0:
                epoch, start = divmod(self.done, judge.steps)
                if self.recipe.lr_end is not None and self.optim is not None:
                    set_lr(self.optim, CosineByEpoch(self.recipe.lr, self.recipe.lr_end).in_epoch(epoch, self.epochs))
                # Opened again in every call, as scoring reads the same examples in between.
                pairs = search_batches(
                    judge.weight_loader, judge.tuning_loader, epoch, start, wanted=self._tunes_logits
                )
                for weight_batch, arch_batch in itertools.islice(pairs, steps):
                    if arch_batch is not None and self.arch_optim is not None:
                        self._logits_step(decided, arch_batch, self.arch_optim)
                    if self.optim is not None:
                        self._weight_step(decided, weight_batch, self.optim)
                    self.done, steps = self.done + 1, steps - 1
        if self.optim is not None:
            self.optim.zero_grad(set_to_none=True)
        judge.guard.check(TUNING, self.weights, naming(supernet))

    def _tunes_logits(self, step: int) -> bool:
        return self.arch_optim is not None

    def _logits_step(
        self,
        decided: Mapping[str, int | None],
        batch: Batch,
        optim: torch.optim.Optimizer,
    ) -> None:
        optim.zero_grad(set_to_none=True)
        with weights_frozen(self.weights), gates(self.judge.choices, self.mixture(decided, differentiable=True)):
            loss = self._loss(batch)
            if loss.requires_grad:  # False if every choice is decided
                self.arch_scaler.scale(loss).backward()
        take_step(optim, self.arch_scaler, watch=self.judge.guard.watch(ARCHITECTURE, loss, self.arch.naming))

    def _weight_step(self, decided: Mapping[str, int | None], batch: Batch, optim: torch.optim.Optimizer) -> None:
        optim.zero_grad(set_to_none=True)
        with gates(self.judge.choices, self.mixture(decided)):
            loss = self._loss(batch)
            self.scaler.scale(loss).backward()
        watch = self.judge.guard.watch(TUNING, loss, naming(self.judge.supernet))
        take_step(optim, self.scaler, max_norm=self.recipe.grad_clip, watch=watch)

    def _loss(self, batch: Batch) -> torch.Tensor:
        inputs, targets = batch
        self.judge.guard.begin(self.judge.supernet)
        whole = WeighedLoss(self.judge.task, targets)
        with self.judge.precision.autocast():
            return whole.loss(self.judge.supernet(*each(inputs)), targets)


def check(recipe: Recipe) -> None:
    """Raises ConfigError if a number is out of range."""
    if not recipe.lr > 0:
        raise ConfigError(f"deriver.tune_lr must be > 0, got {recipe.lr:g}", fix="set deriver.tune_lr=0.0025")
    for name in ("lr_end", "momentum", "weight_decay", "grad_clip"):
        value = getattr(recipe, name)
        if value is not None and not value >= 0:
            raise ConfigError(f"deriver.tune_{name} must be >= 0, got {value:g}", fix=f"set deriver.tune_{name}=0")
