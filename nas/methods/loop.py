"""The search: alternate the two levels over the epochs, cool down, derive."""

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nas.data.inputs import Batch
from nas.data.loader import Loader, search_batches
from nas.methods.first_order import FirstOrder
from nas.methods.state import SearchState
from nas.supernet.genotype import Genotype
from nas.training.hooks import Hook, Hooks, in_training_mode
from nas.training.schedule import CosineByEpoch, Schedule, learning_rate, progress, set_lr


@dataclass(frozen=True)
class Order:
    """When the architecture takes a step beside the weights, which take one step on every batch.

    warmup_epochs: the first epochs, in which the logits stay as they are. arch_every: weight steps to one architecture
    step. arch_first: the architecture step comes before the weight step of its batch, as in DARTS, or after it.
    """

    warmup_epochs: int = 0
    arch_every: int = 1
    arch_first: bool = False

    def moves_arch(self, step: int, *, steps: int) -> bool:
        """Whether the architecture takes a step beside a weight step. step: counted over epochs of `steps` steps."""
        return step >= self.warmup_epochs * steps and (step + 1) % self.arch_every == 0

    def step(
        self, searcher: FirstOrder, weight_batch: Batch, arch_batch: Batch | None, state: SearchState, done: float
    ) -> None:
        """One iteration of both levels, measured by the meters of the state. arch_batch: None where the architecture
        takes no step. done: of the search, in [0, 1]."""
        weights, arch, tau = state.weights_meter, state.arch_meter, state.temperature
        if arch_batch is None:
            weights.add(searcher.weight_step(weight_batch, tau))
        elif self.arch_first:
            arch.add(searcher.arch_step(arch_batch, weight_batch, tau, done))
            weights.add(searcher.weight_step(weight_batch, tau))
        else:
            first, *others = searcher.draw_ahead(tau)
            weights.add(searcher.weight_step(weight_batch, tau, first))
            arch.add(searcher.arch_step(arch_batch, weight_batch, tau, done, others))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The epochs of a search and their schedules.

    temperature: by epoch; the first epoch has exactly its start, the last exactly its end.
    lr: of the weights, by step or by epoch.
    """

    epochs: int
    temperature: Schedule
    lr: Schedule | CosineByEpoch
    order: Order = field(default_factory=Order)


def search(
    state: SearchState,
    *,
    searcher: FirstOrder,
    weight_loader: Loader,
    arch_loader: Loader,
    plan: Plan,
    derive: Callable[[SearchState, bool], Genotype],
    hooks: Iterable[Hook] = (),
) -> Genotype:
    """Run the search from where the state is to the end. Returns the genotype of the last epoch.

    derive: the genotype after an epoch, and whether the epoch is the last one; it may stop the search, see
    `SearchState.stopped`. hooks: called after each step and each epoch, in their order.
    Raises DivergenceError, naming epoch, step, level and tensor, if a number is not finite any more.
    """
    every, epochs = Hooks(hooks), plan.epochs
    state.steps = steps = len(weight_loader)
    uses_arch = functools.partial(plan.order.moves_arch, steps=steps)
    while state.epoch < epochs and state.stopped is None:
        epoch, done = state.epoch, progress(state.epoch, epochs)
        state.temperature = plan.temperature(done)
        started = time.perf_counter() - state.seconds
        for weight_batch, arch_batch in search_batches(weight_loader, arch_loader, epoch, state.step, wanted=uses_arch):
            set_lr(state.weight_optim, learning_rate(plan.lr, epoch, state.step, steps=steps, epochs=epochs))
            in_training_mode(state.supernet)
            with state.guard.at(epoch, state.step):
                plan.order.step(searcher, weight_batch, arch_batch, state, done)
            state.step, state.seconds = state.step + 1, time.perf_counter() - started
            every.after_step(state)
        state.check()
        state.finish_epoch(derive(state, epoch + 1 == epochs))
        every.after_epoch(state)
    assert state.genotype is not None  # epochs >= 1, checked by whoever configured the search
    return state.genotype
