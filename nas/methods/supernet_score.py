"""The judge scores architectures inside the supernet, on examples that a search may use."""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas.data.inputs import Batch, each
from nas.data.loader import Loader
from nas.errors import ConfigError
from nas.runtime import distributed
from nas.runtime.nonfinite import Guard
from nas.runtime.precision import Precision
from nas.runtime.runtime import seed_of_process
from nas.supernet.choice import LEFT_OUT, Gate, choices, gates
from nas.supernet.genotype import check_chosen
from nas.supernet.undisturbed import undisturbed
from nas.training.batch_norm import batch_statistics, frozen_norms, recalibrate
from nas.training.evaluate import Score
from nas.training.metrics import single_sum
from nas.training.task import Task
from nas.training.task_state import buffers_kept
from nas.training.weighing import MeanLoss, mean


@dataclass(eq=False, kw_only=True)
class Judge:
    """Scores gates and decided architectures inside a supernet, all on the same examples with the same noise.

    weight_loader: training batches of the weights' split. validation_loader: batches of the architecture's split,
    without augmentation. The judge has no access to the test split. batches: the largest number of batches of each
    kind, which are read once. None: all validation batches, read again for every score, as they may not fit in memory.
    start: the number of the first validation batch. seed: the seed of all random numbers. precision: of the forward
    passes, as in the search. arch_loader, arch_optim, guard: training batches and optimiser of the logits, and what
    checks steps, for derivers that tune.

    Each of several processes scores its share of the batches with its own noise. The result covers all processes.

    Scoring changes neither the supernet nor torch's generators: see `undisturbed`. All modules but the batch norms are
    in evaluation mode. Each method says which statistics the batch norms use. Norms that the supernet keeps in
    evaluation mode during training always use their running statistics.
    """

    supernet: nn.Module
    task: Task
    weight_loader: Loader
    validation_loader: Loader
    batches: int | None
    seed: int
    start: int = 0
    precision: Precision = field(default_factory=Precision)
    arch_loader: Loader | None = None
    arch_optim: torch.optim.Optimizer | None = None
    guard: Guard = field(default_factory=Guard)
    scores: int = 0  # given until now
    undefined: int = 0  # of these, with a loss that is not finite

    def __post_init__(self) -> None:
        self.noise = seed_of_process(self.seed, "noise")
        self.choices = choices(self.supernet)
        self._whole = functools.partial(self.validation_loader.epoch, 0, start=self.start)
        self._reads_anew = self.batches is None
        self.validation: list[Batch] = list(itertools.islice(self._whole(), self.batches or 0))
        self.calibration: list[Batch] = list(itertools.islice(self.weight_loader.epoch(0), self.batches or 0))
        self.examples = distributed.world() * sum(len(targets) for _, targets in self._validation())

    @property
    def tuning_loader(self) -> Loader:
        """Training batches of the logits."""
        return self.arch_loader or self.validation_loader

    @property
    def steps(self) -> int:
        """The number of weight steps per epoch."""
        return len(self.weight_loader)

    def _validation(self) -> Iterable[Batch]:
        return self._whole() if self._reads_anew else self.validation

    def logits_optimizer(self) -> torch.optim.Optimizer:
        """The search's optimiser of the logits. Raises ConfigError if the judge was made without it."""
        if self.arch_optim is None:
            raise ConfigError("the logits cannot be tuned without their optimiser", fix="set deriver.tune_logits=false")
        return self.arch_optim

    def generator(self) -> torch.Generator:
        """Returns a new generator on the CPU, always in the same state."""
        return torch.Generator().manual_seed(self.seed)

    def relaxed(self, by_key: Iterable[Mapping[str, Gate]]) -> Score:
        """Scores the supernet under gates. by_key: yields the gates of each batch.

        Batch norms use the statistics of the batch, as in the steps of a search.
        """
        frozen = frozen_norms(self.supernet)
        with undisturbed(self.supernet, seed=self.noise), batch_statistics(self.supernet, but=frozen):
            return self._score(by_key)

    def decided(self, chosen: Mapping[str, str | None], *, recalibrated: bool, batches: int | None = None) -> Score:
        """Scores the supernet with the chosen operations only: the network that `freeze` would return, with weights.

        chosen: key -> candidate, or None for a dropped edge. Batch norms use running statistics: those of the search,
        or, if `recalibrated`, averages over the training batches through the chosen operations only.
        batches: use the first `batches` batches of both kinds; None for all.
        Raises GenotypeError if `chosen` does not fit the supernet's choices.
        """
        names = {key: sharing[0].names for key, sharing in self.choices.items()}
        check_chosen(chosen, names)
        by_key = {key: LEFT_OUT if name is None else Gate(None, names[key].index(name)) for key, name in chosen.items()}
        frozen = frozen_norms(self.supernet)
        with undisturbed(self.supernet, seed=self.noise):
            if recalibrated:
                recalibrate(self.supernet, lambda: self._run_calibration(by_key, batches), but=frozen)
            return self._score(itertools.repeat(by_key), batches)

    def merit(self, score: Score) -> tuple[float, float]:
        """A pair to compare scores: the task's metric, then the loss on a tie. Larger is better; NaN is the worst."""
        metric = score.metric if self.task.metric.higher_is_better else -score.metric
        return worst_if_nan(metric), worst_if_nan(-score.loss)

    @contextmanager
    def weights_put_back(self) -> Iterator[None]:
        """Restores the supernet's weights at the end."""
        before = [(weight, weight.detach().clone()) for weight in self.supernet.parameters()]
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in before:
                    weight.copy_(value)

    @torch.no_grad()
    def _score(self, by_key: Iterable[Mapping[str, Gate]], batches: int | None = None) -> Score:
        metric: Tensor | float = 0.0
        loss = MeanLoss(self.task)
        looked_at = self._whole() if self._reads_anew and batches is None else self.validation[:batches]
        examples = 0
        with buffers_kept(self.task):  # training goes on with the loss
            for (inputs, targets), gates_now in zip(looked_at, by_key, strict=False):
                with gates(self.choices, gates_now), self.precision.autocast():
                    outputs = self.supernet(*each(inputs))
                    loss.add(self.task.loss(outputs, targets), targets)
                metric += single_sum(self.task.measure(outputs, targets))
                examples += len(targets)
        metrics, losses, weights = distributed.averaged([float(metric), *loss.sums()])
        found = Score(metrics / examples, mean(losses, weights), distributed.world() * examples)
        self.scores, self.undefined = self.scores + 1, self.undefined + (not math.isfinite(found.loss))
        return found

    @torch.no_grad()
    def _run_calibration(self, by_key: Mapping[str, Gate], batches: int | None) -> None:
        with gates(self.choices, by_key), self.precision.autocast():
            for inputs, _ in self.weight_loader.epoch(0) if self._reads_anew else self.calibration[:batches]:
                self.supernet(*each(inputs))


def worst_if_nan(value: float) -> float:
    return -math.inf if math.isnan(value) else value
