"""The weight step and the architecture step of the bilevel problem min_alpha L_val(w*(alpha), alpha), first order.

Each level treats the other level as constant (Liu et al. 2019, sec. 2.3 with xi = 0; GDAS has the same form).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from nas.data.inputs import Batch, each
from nas.errors import ConfigError
from nas.methods.cuda_graphs.replayed_module import Replayed
from nas.methods.regulariser import Regulariser
from nas.methods.sampler import Gates, LossSampler, draw, read_on_host
from nas.methods.state import SearchState
from nas.methods.undrawn import UndrawnDecay, check_undrawn
from nas.runtime import distributed
from nas.runtime.fused_step import zero_gradients
from nas.runtime.nonfinite import ARCHITECTURE, WEIGHTS, naming
from nas.runtime.precision import Precision, take_step
from nas.supernet.choice import Gate, choices, gates
from nas.training.meter import StepResult
from nas.training.metrics import single_sum
from nas.training.task import Task
from nas.training.weighing import WeighedLoss


@contextmanager
def weights_frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, no gradients of the parameters are computed. This saves a third of an architecture step's backward
    pass."""
    frozen = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


class FirstOrder:
    """Takes the weight steps and architecture steps of a supernet.

    state: of the search; the steps use its supernet, logits, optimisers, sampler, generator, scaler and guard.
    task: gives the loss of both levels. regulariser: a term of the architecture loss beside the task's loss; reported
    losses leave the term out. precision: the precision of the forward passes, which made the state's scaler.
    grad_clip: the largest norm of the weights' gradient; 0 for no clipping. undrawn: the effect of a weight step on
    operations that it does not draw. ``rest``: no effect. ``decay``: momentum and weight decay change them, as in the
    published runs; see `UndrawnDecay`.
    """

    def __init__(
        self,
        state: SearchState,
        *,
        task: Task,
        regulariser: Regulariser | None = None,
        precision: Precision | None = None,
        grad_clip: float = 5.0,
        undrawn: str = "rest",
    ) -> None:
        if grad_clip < 0:
            raise ConfigError(
                f"searcher.grad_clip must be >= 0, got {grad_clip}", fix="set searcher.grad_clip=0 for no clipping"
            )
        self.supernet = state.supernet
        self.arch = state.arch
        self.sampler = state.sampler
        self.scored = self.sampler if isinstance(self.sampler, LossSampler) else None
        if self.scored is not None and self.arch.share_logits is not None:
            raise ConfigError(
                f"{type(self.sampler).__name__} learns from losses alone and gives shares no gradient, got "
                "weighed choices (edge normalisation)",
                fix="set space.edge_normalisation=false, or another sampler, e.g. sampler=gdas",
            )
        self.task = task
        self.weight_optim = state.weight_optim
        self.arch_optim = state.arch_optim
        self.generator = state.generator
        self.grad_clip = grad_clip
        self.regulariser = regulariser
        self.precision = precision or Precision()
        self.scaler = state.scaler
        self.guard = state.guard
        self.held = () if state.task is None else state.task.modules
        self.choices = choices(self.supernet)
        self.weights = list(self.supernet.parameters())
        check_undrawn(undrawn, self.weight_optim)
        decays = undrawn == "decay"
        self.undrawn = UndrawnDecay(self.supernet, self.choices, self.weight_optim) if decays else None

    def draw_ahead(self, temperature: float) -> list[Gates]:
        """Draws the gates of a weight step and of the next architecture step.

        Returns one draw for the weight step, then the sampler's `samples` draws for the architecture step. The steps
        would draw the same gates themselves, but here the host waits for the GPU once instead of twice.
        """
        with torch.no_grad():
            gates = [self._draw(temperature)]
        return read_on_host(gates + [self._draw(temperature) for _ in range(self.sampler.samples)])

    def _draw(self, temperature: float) -> Gates:
        return draw(self.sampler, self.arch, temperature, self.generator)

    def _noted(self, drawn: Gates) -> Gates:
        """Returns the gates. Under ``decay`` first records which operations the gates draw."""
        if self.undrawn is None or drawn.drawn is None:
            return drawn
        noted = drawn if drawn.host is not None else read_on_host([drawn])[0]
        assert noted.host is not None  # read by `read_on_host`
        self.undrawn.drew(self.arch.keys, noted.host[0])
        return noted

    def weight_step(self, batch: Batch, temperature: float, drawn: Gates | None = None) -> StepResult:
        """Takes one step of the weights on a batch of the weights' split. drawn: the gates, None to draw them here."""
        self.guard.begin(self.supernet, *self.held)
        # None: with zeroed gradients, momentum and weight decay would still change the undrawn operations.
        zero_gradients(self.weight_optim)
        if drawn is None:
            with torch.no_grad():
                drawn = self._draw(temperature)
        drawn = self._noted(drawn)
        loss, metric = self.add_weight_gradient(batch, drawn)
        if self.undrawn is not None:
            self.undrawn.fill(self.weights)
        watch = self.guard.watch(WEIGHTS, loss, naming(self.supernet))
        taken = take_step(self.weight_optim, self.scaler, max_norm=self.grad_clip, watch=watch, measured=[metric])
        return StepResult(watch.loss, metric, len(batch[1]), taken.norm, taken.skipped, self.scaler.is_enabled())

    def add_weight_gradient(self, batch: Batch, drawn: Gates) -> tuple[Tensor, Tensor]:
        """Adds the gradient of the loss under these gates to that of the weights. Returns the loss and the metric."""
        # Backward passes too: activation checkpointing runs choices again in them.
        with self._pass(drawn, differentiable=False, frozen=False):
            loss, metric = self._forward(batch)
            if loss.requires_grad:  # False where all that is drawn is frozen
                self.scaler.scale(loss).backward()
        return loss, metric

    def arch_step(
        self,
        batch: Batch,
        weight_batch: Batch,
        temperature: float,
        progress: float = 0.0,
        drawn: Sequence[Gates] = (),
    ) -> StepResult:
        """Takes one step of the logits on a batch of the architecture's split.

        weight_batch: a batch of the weights' split, for searchers that also use the next weight step.
        progress: the progress of the search in [0, 1], for the regulariser. drawn: the gates, empty to draw them here.
        """
        self.guard.begin(self.supernet, *self.held)
        zero_gradients(self.arch_optim)
        samples = self.sampler.samples
        drawn = [self._noted(one) for one in drawn or [self._draw(temperature) for _ in range(samples)]]
        losses: Tensor | None = None
        if self.scored is None:
            passes = [self._add_gradient(batch, weight_batch, gates, 1 / samples) for gates in drawn]
        else:
            passes = [self._without_gradient(batch, gates) for gates in drawn]
            # Losses of the whole batch, so that all processes learn from the same advantages.
            (losses,) = distributed.means([torch.stack([loss for loss, _ in passes])])
            self.scaler.scale(self.scored.surrogate(self.arch, drawn, losses)).backward()
        if self.regulariser is not None:
            self.scaler.scale(self.regulariser(self.arch, progress)).backward()
        if samples == 1:
            ((loss, metric),) = passes
        else:
            loss, metric = (torch.stack(values).sum() / samples for values in zip(*passes, strict=True))
        watch = self.guard.watch(ARCHITECTURE, loss, self.arch.naming)
        taken = take_step(self.arch_optim, self.scaler, watch=watch, measured=[metric])
        if self.scored is not None and losses is not None and not taken.skipped:
            self.scored.learn(self.arch, drawn, losses)
        return StepResult(watch.loss, metric, len(batch[1]), taken.norm, taken.skipped, self.scaler.is_enabled())

    def _pass(self, drawn: Gates, *, differentiable: bool, frozen: bool) -> AbstractContextManager[None]:
        """Returns the context of a pass under these gates. frozen: compute no gradients of the weights."""
        by_key = drawn.by_key(self.arch.keys, differentiable=differentiable)
        ordinary = self._set(by_key, frozen=frozen)
        replayed = self.supernet._compiled_call_impl
        if isinstance(replayed, Replayed):
            return replayed.step(self.choices, by_key, ordinary, frozen=frozen)
        return ordinary

    @contextmanager
    def _set(self, by_key: Mapping[str, Gate], *, frozen: bool) -> Iterator[None]:
        with weights_frozen(self.weights if frozen else ()), gates(self.choices, by_key):
            yield

    def _without_gradient(self, batch: Batch, drawn: Gates) -> tuple[Tensor, Tensor]:
        """The loss and the metric of one draw, without gradients."""
        # Frozen weights, not no_grad: that is for passes of other kinds, e.g. of a calibration, which are not replayed.
        with self._pass(drawn, differentiable=False, frozen=True):
            loss, metric = self._forward(batch)
        return loss.detach(), metric

    def _add_gradient(self, batch: Batch, weight_batch: Batch, drawn: Gates, factor: float) -> tuple[Tensor, Tensor]:
        """Adds `factor` times the gradient of one draw to the logits' gradient. Returns the draw's loss and metric."""
        with self._pass(drawn, differentiable=True, frozen=True):
            loss, metric = self._forward(batch)
            if loss.requires_grad:
                self.scaler.scale(loss if factor == 1 else factor * loss).backward()
            elif drawn.weights.requires_grad:  # all drawn edges are dead: the gradient is 0, but Adam still steps
                shares = 0 if drawn.shares is None else drawn.shares.sum()
                (0 * (drawn.weights.sum() + shares)).backward()
        return loss.detach(), metric

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss and the metric of a batch, under the current gates. The metric is a float, summed over the batch."""
        inputs, targets = batch
        whole = WeighedLoss(self.task, targets)
        with self.precision.autocast():
            outputs = self.supernet(*each(inputs))
            loss = whole.loss(outputs, targets)
        return loss, single_sum(self.task.measure(outputs.detach(), targets))
