"""Samplers draw the gates of a step: (logits, temperature, generator) -> gates.

A sampler is any callable of this form. The logits are a (choices, candidates) matrix with -inf at the padding. Every
row is a separate categorical distribution p = softmax(logits). g is Gumbel noise, tau is the temperature, and
y = softmax((log p + g) / tau) is the Gumbel-Softmax sample (Jang et al. 2017; Maddison et al. 2017).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from nas.data.inputs import form
from nas.errors import ConfigError, DivergenceError
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Gate
from nas.supernet.hard_gate import GateValues, HardGate
from nas.training.metrics import single

TINY = torch.finfo(torch.float32).tiny
ROUNDING = 0.01  # of a weight that is 1, in bfloat16
ESTIMATORS = ("sampled", "autodl", "full", "reinmax")


@dataclass(frozen=True)
class Gates:
    """The gates of all choices for one step.

    weights: (choices, candidates) factors of the candidates' outputs, each row summing to 1.
    drawn: (choices,) int64, the only candidate of each choice that runs, whose weight is 1; None if all candidates run.
    undrawn_as_ones: add the gates of undrawn candidates as if the candidates had returned 1 (GDAS' `autodl` estimator).
    shares: (choices,) factors of the choices' outputs; None if no choice is weighed. `draw` sets the shares, not the
    sampler.
    host: for each choice the drawn candidate, its weight, and the sum of its row, as lists on the host: see
    `read_on_host`.
    """

    weights: Tensor
    drawn: Tensor | None = None
    undrawn_as_ones: bool = False
    shares: Tensor | None = None
    host: tuple[list[int], list[float], list[float]] | None = None

    def by_key(self, keys: Sequence[str], *, differentiable: bool) -> dict[str, Gate]:
        """The gates for `nas.supernet.choice.gates`; row i belongs to keys[i].

        differentiable: False drops the gradient, which the weight step does not need.
        Raises DivergenceError if a weight is NaN, ConfigError if that of a drawn candidate is not 1. The checks are
        skipped if they would wait for a GPU: drawn candidates come to the host anyway, but weights alone do not.
        """
        weights = self.weights if differentiable else self.weights.detach()
        nothing: Sequence[None] = [None] * len(keys)
        shares: Sequence[Tensor | None] = nothing
        if self.shares is not None:
            shares = (self.shares if differentiable else self.shares.detach()).unbind()
        if self.drawn is None:
            if weights.device.type == "cpu":
                refuse_nan(keys, weights.detach().isnan().any(dim=-1).tolist())
            # unbind, because indexing in every choice would add one gradient of full size per choice.
            rows = [row.unbind() for row in weights.unbind()]
            return {key: Gate(row, None, share=share) for key, row, share in zip(keys, rows, shares, strict=True)}
        drawn, ones, sums = self.host or read_on_host([self])[0].host or ([], [], [])
        refuse_nan(keys, [total != total for total in sums])  # a NaN makes the sum of its row a NaN
        refuse_soft(keys, drawn, ones)
        hard: Sequence[HardGate | None] = nothing
        others: Sequence[tuple[Tensor, ...] | None] = nothing
        if weights.requires_grad:
            chosen = GateValues(weights.gather(-1, self.drawn[:, None]).squeeze(-1))
            hard = [HardGate(chosen, index=i) for i in range(len(keys))]
            if self.undrawn_as_ones:
                others = [row.unbind() for row in weights.unbind()]
        return {
            key: Gate(None, index, gate, rest, share)
            for key, index, gate, rest, share in zip(keys, drawn, hard, others, shares, strict=True)
        }


def read_on_host(several: Sequence[Gates]) -> list[Gates]:
    """Returns the gates with `host` set.

    Waits for a GPU once for all gates. Gates without drawn candidates come back unchanged.
    """
    drawn = [gates.drawn for gates in several if gates.drawn is not None]
    if len(drawn) < len(several):
        return list(several)
    # One .tolist() for all choices: one .item() per choice would synchronise a GPU as often as there are edges.
    numbers = iter(torch.cat([*drawn, *(single(gates.weights.detach()).reshape(-1) for gates in several)]).tolist())
    places = [list(map(int, itertools.islice(numbers, len(one)))) for one in drawn]
    read = []
    for gates, indices in zip(several, places, strict=True):
        candidates = gates.weights.shape[1]
        rows = [list(itertools.islice(numbers, candidates)) for _ in indices]
        ones = [row[index] for index, row in zip(indices, rows, strict=True)]
        read.append(dataclasses.replace(gates, host=(indices, ones, list(map(sum, rows)))))
    return read


def refuse_nan(keys: Sequence[str], broken: Sequence[int]) -> None:
    """Raises DivergenceError, naming the first broken choice, if a choice is broken. broken: 1 for a row with NaN."""
    for key, lost in zip(keys, broken, strict=True) if any(broken) else ():
        if lost:
            raise DivergenceError(
                f"architecture: the logits of {key} are not finite, expected numbers",
                fix="lower arch_optim.lr or weight_optim.lr",
            )


def refuse_soft(keys: Sequence[str], drawn: Sequence[int], ones: Sequence[float]) -> None:
    """Raises ConfigError, naming the choice, for a drawn candidate with another weight than 1. ones: the weights."""
    for key, index, weight in zip(keys, drawn, ones, strict=True):
        if not abs(weight - 1) <= ROUNDING:
            raise ConfigError(
                f"the sampler draws candidate {index} of the choice {key} with the weight {weight:.3g}, expected 1, as "
                "its output is not multiplied",
                fix="return Gates(weights) without drawn, so that all candidates run, or, for hard gates with the "
                "gradient of the weights, Gates(nas.methods.sampler.straight_through(drawn, weights), drawn)",
            )


class Sampler(Protocol):
    """Draws the gates of one step. All randomness comes from `generator`."""

    @property
    def relaxed(self) -> bool:
        """Whether the gates are a smooth function of the logits, which second-order search needs."""
        ...

    @property
    def samples(self) -> int:
        """The number of draws over which an architecture step averages the gradient."""
        ...

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates: ...


@runtime_checkable
class LossSampler(Sampler, Protocol):
    """A sampler whose logits learn only from the losses of the drawn networks.

    Its gates carry no gradient, and an architecture step runs the networks forward only.
    """

    def surrogate(self, arch: ArchParams, drawn: Sequence[Gates], losses: Tensor) -> Tensor:
        """Returns a scalar whose gradient is the logits' gradient of an architecture step.

        losses: (networks,), one for each draw.
        """
        ...

    def learn(self, arch: ArchParams, drawn: Sequence[Gates], losses: Tensor) -> None:
        """Called after every step that was not skipped, with the arguments of `surrogate`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state that `learn` has built up, for the checkpoint of a search."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def draw(sampler: Sampler, arch: ArchParams, temperature: float, generator: torch.Generator) -> Gates:
    """Draws the gates of all choices of `arch`, in its order, for one step. Adds the shares, which are not drawn.

    Raises ConfigError if the sampler returns something else than gates of all candidates.
    """
    gates, shares = sampler(arch.masked(), temperature, generator), arch.shares()
    check_drawn(gates, sampler, arch.logits.shape)
    return gates if shares is gates.shares else dataclasses.replace(gates, shares=shares)


def check_drawn(gates: Any, sampler: Sampler, shape: torch.Size) -> None:
    """Raises ConfigError unless the gates are those of a matrix of logits of this shape."""
    right = isinstance(gates, Gates) and isinstance(gates.weights, Tensor) and gates.weights.shape == shape
    if right and (gates.drawn is None or (gates.drawn.shape == shape[:1] and gates.drawn.dtype == torch.int64)):
        return
    got = f"a {type(gates).__name__}"
    if isinstance(gates, Gates):
        forms = (
            form(one) if isinstance(one, Tensor) else f"a {type(one).__name__}" for one in (gates.weights, gates.drawn)
        )
        got = "gates with weights, drawn of {} and {}".format(*forms)
    raise ConfigError(
        f"the sampler {type(sampler).__name__} returned {got} for logits of {tuple(shape)}",
        fix="return nas.methods.sampler.Gates(weights, drawn): weights of the shape of the logits; drawn an index for "
        "each row as int64, or None if all candidates run",
    )


def gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of the shape of `like`: -log E with E ~ Exp(1).

    The noise is drawn in float32 on the generator's device. So a search draws the same numbers on a CPU and on a GPU,
    and rounds them in the same way for any precision of the logits.
    """
    exponential = torch.empty(like.shape, dtype=torch.float32, device=generator.device)
    exponential.exponential_(generator=generator)
    # E can round to 0, whose logarithm is not finite.
    noise = exponential.clamp_min_(TINY).log_().neg_()
    if like.device.type == "cuda" and noise.device.type == "cpu":
        return noise.pin_memory().to(like.device, non_blocking=True)  # else the host would wait for the GPU
    return noise.to(like.device)


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns y (choices, candidates), differentiable in the logits, and the index of its largest entry (choices,).

    The index is an exact draw from p. Computes in float32 or wider, and returns y in the dtype of the logits.
    """
    wide = single(logits)
    perturbed = wide.log_softmax(dim=-1) + gumbel_noise(wide, generator)
    # argmax of the perturbed logits, not of y: at a high temperature softmax rounds different values to ties.
    return (perturbed / temperature).softmax(dim=-1).to(logits), perturbed.argmax(dim=-1)


def straight_through(drawn: Tensor, soft: Tensor) -> Tensor:
    """Returns exactly onehot(drawn) in the forward pass, with the gradient of `soft` in the backward pass."""
    return torch.zeros_like(soft).scatter_(-1, drawn[:, None], 1.0) + (soft - soft.detach())


@dataclass(frozen=True, kw_only=True)
class Stochastic:
    """The base class of samplers that draw at random and get a gradient through the draws.

    samples: the number of independent draws of an architecture step. Its gradient is the mean over the draws. The cost
    grows with the number, the memory does not. A weight step always takes one draw: another step costs as much as
    another draw, and makes more progress.
    """

    samples: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"sampler.samples must be at least 1, got {self.samples}", fix="set sampler.samples=1")


@dataclass(frozen=True)
class Softmax:
    """Gates p: every operation runs, weighted (DARTS, Liu et al. 2019, eq. 2). Ignores the temperature; not random."""

    relaxed = True
    samples = 1

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        return Gates(logits.softmax(dim=-1))


@dataclass(frozen=True)
class GumbelSoftmax(Stochastic):
    """Gates y: every operation runs with a random weight (SNAS, Xie et al. 2019)."""

    relaxed = True

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        return Gates(gumbel_softmax(logits, temperature, generator)[0])


@dataclass(frozen=True)
class StraightThrough(Stochastic):
    """onehot(argmax y) forward, y backward. Every operation runs, as the backward pass needs every output."""

    relaxed = False

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        soft, drawn = gumbel_softmax(logits, temperature, generator)
        return Gates(straight_through(drawn, soft))


@dataclass(frozen=True)
class GDAS(Stochastic):
    """Draws one operation k = argmax y per edge (Dong & Yang 2019). The output is h_k o_k(x) with
    h = onehot(k) + y - stopgrad(y). The estimator decides how the logits learn:

    sampled: only operation k runs, and only h_k carries a gradient. This is the formula of the paper.
    autodl: only operation k runs, and the gates of the other operations are added as scalars, as in the authors' public
        code. These gates get a gradient as if their operations had returned 1.
    full: every operation runs, so that every gate gets its true gradient. Equals `StraightThrough`, the reference.
    reinmax: every operation runs; second-order accurate (Liu et al. 2023, "Bridging Discrete and Backpropagation").
    """

    estimator: str = "sampled"
    relaxed = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator not in ESTIMATORS:
            raise ConfigError(
                f"sampler.estimator must be one of {', '.join(ESTIMATORS)}, got {self.estimator!r}",
                fix="set sampler.estimator=sampled",
            )

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        soft, drawn = gumbel_softmax(logits, temperature, generator)
        if self.estimator == "full":
            return Gates(straight_through(drawn, soft))
        if self.estimator == "reinmax":
            return Gates(reinmax(logits, drawn, temperature))
        return Gates(straight_through(drawn, soft), drawn, undrawn_as_ones=self.estimator == "autodl")


def reinmax(logits: Tensor, drawn: Tensor, temperature: float) -> Tensor:
    """onehot(drawn) forward. Backward: Heun's method in place of straight-through's Euler step.

    pi_1 = (D + softmax(logits / tau)) / 2; the gradient is that of 2 softmax(log pi_1) - softmax(logits) / 2.
    Source: Liu et al. 2023, algorithm 2.
    """
    probs = logits.softmax(dim=-1)
    hard = torch.zeros_like(probs).scatter_(-1, drawn[:, None], 1.0)
    with torch.no_grad():
        middle = (hard + (logits / temperature).softmax(dim=-1)) / 2
        # At the padding the logits are -inf and the difference is NaN, so it is replaced by 0.
        shift = torch.where(logits.isfinite(), middle.log() - logits, torch.zeros_like(logits))
    return straight_through(drawn, 2 * (shift + logits).softmax(dim=-1) - probs / 2)


@dataclass(frozen=True)
class Uniform:
    """Draws one operation per edge, all equally likely: the single-path random baseline (Li & Talwalkar 2019).

    The logits get no gradient and keep their initial values, so the derived architecture is random.
    """

    relaxed = False
    samples = 1

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        flat = torch.zeros_like(logits.detach()).masked_fill(logits.detach() == -torch.inf, -torch.inf)
        soft, drawn = gumbel_softmax(flat, 1.0, generator)
        return Gates(torch.zeros_like(soft).scatter_(-1, drawn[:, None], 1.0), drawn)
