"""Samplers: (logits, temperature, generator) -> gates.

A sampler is any callable of that form. The logits come as a (choices, candidates) matrix with -inf at the padding;
every row is a categorical distribution p = softmax(logits) of its own. g is Gumbel noise, tau the temperature, and
y = softmax((log p + g) / tau) the Gumbel-Softmax sample (Jang et al. 2017; Maddison et al. 2017).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from nas.errors import ConfigError, DivergenceError
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Gate
from nas.supernet.hard_gate import HardGate

ESTIMATORS = ("sampled", "autodl", "full", "reinmax")


@dataclass(frozen=True)
class Gates:
    """The gates of all choices for one step.

    weights: (choices, candidates) factors of the candidates' outputs, each row summing to 1.
    drawn: (choices,) int64, the only candidate of each choice that runs; None when all of them run.
    undrawn_as_ones: the gates of undrawn candidates are added as if those had returned 1 (GDAS' `autodl` estimator).
    shares: (choices,) factors of the choices' outputs; None where no choice is weighed. No sampler sets them: see
    `draw`.
    host: what the host has to know of them, once it has been told: see `told`.
    """

    weights: Tensor
    drawn: Tensor | None = None
    undrawn_as_ones: bool = False
    shares: Tensor | None = None
    host: tuple[list[int], list[int]] | None = None

    def by_key(self, keys: Sequence[str], *, differentiable: bool) -> dict[str, Gate]:
        """Gates for `nas.supernet.choice.gates`, row i for keys[i].

        differentiable: False drops the gradient, as the weight step has no use for it.
        Raises DivergenceError if the weights are not numbers, where looking costs no wait: what is drawn comes to the
        host anyway, and on a CPU all is there.
        """
        weights = self.weights if differentiable else self.weights.detach()
        nothing: Sequence[None] = [None] * len(keys)
        shares: Sequence[Tensor | None] = nothing
        if self.shares is not None:
            shares = (self.shares if differentiable else self.shares.detach()).unbind()
        # Unbound, as indexing in every choice would add a gradient of full size for each of them.
        if self.drawn is None:
            if weights.device.type == "cpu":
                refuse_nan(keys, weights.detach().isnan().any(dim=-1).tolist())
            rows = [row.unbind() for row in weights.unbind()]
            return {key: Gate(row, None, share=share) for key, row, share in zip(keys, rows, shares, strict=True)}
        drawn, broken = self.host or told([self])[0].host or ([], [])
        refuse_nan(keys, broken)
        hard: Sequence[HardGate | None] = nothing
        others: Sequence[tuple[Tensor, ...] | None] = nothing
        if weights.requires_grad:
            chosen = weights.gather(-1, self.drawn[:, None]).squeeze(-1)
            hard = [HardGate(value, all_values=chosen, index=i) for i, value in enumerate(chosen.unbind())]
            if self.undrawn_as_ones:
                others = [row.unbind() for row in weights.unbind()]
        return {
            key: Gate(None, index, gate, rest, share)
            for key, index, gate, rest, share in zip(keys, drawn, hard, others, shares, strict=True)
        }


def told(several: Sequence[Gates]) -> list[Gates]:
    """The same gates once the host knows which candidates they draw, and which of their rows are not numbers. It waits
    for a GPU once for all of them."""
    rows = [
        torch.stack([gates.drawn, gates.weights.detach().isnan().any(dim=-1)])
        for gates in several
        if gates.drawn is not None
    ]
    if len(rows) < len(several):
        return list(several)
    # One .tolist() for all choices: an .item() for each would synchronise a GPU as often as there are edges.
    return [
        dataclasses.replace(gates, host=(drawn, broken))
        for gates, (drawn, broken) in zip(several, torch.stack(rows).tolist(), strict=True)
    ]


def refuse_nan(keys: Sequence[str], broken: Sequence[int]) -> None:
    """Raises DivergenceError, naming the first choice that is broken, if one is."""
    for key, lost in zip(keys, broken, strict=True):
        if lost:
            raise DivergenceError(
                f"architecture: the logits of {key} are not finite, expected numbers",
                fix="lower arch_optim.lr or weight_optim.lr",
            )


class Sampler(Protocol):
    """Draws the gates of one step. All randomness comes from `generator`."""

    @property
    def relaxed(self) -> bool:
        """Whether the gates are a smooth function of the logits, as second-order search needs."""
        ...

    @property
    def samples(self) -> int:
        """How many draws an architecture step averages the gradient over."""
        ...

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates: ...


@runtime_checkable
class LossSampler(Sampler, Protocol):
    """A sampler whose logits learn from the losses of the drawn networks alone: its gates carry no gradient, and an
    architecture step runs the networks forward only."""

    def surrogate(self, arch: ArchParams, drawn: Sequence[Gates], losses: Tensor) -> Tensor:
        """A scalar with the gradient of an architecture step in the logits. losses: (networks,), one for each draw."""
        ...

    def learn(self, arch: ArchParams, drawn: Sequence[Gates], losses: Tensor) -> None:
        """Called after every step that was taken, with what `surrogate` was given."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `learn` has learnt, for the checkpoint of a search."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def draw(sampler: Sampler, arch: ArchParams, temperature: float, generator: torch.Generator) -> Gates:
    """The gates of all choices of `arch`, in its order, for one step. The shares of weighed choices are not drawn."""
    return dataclasses.replace(sampler(arch.masked(), temperature, generator), shares=arch.shares())


def gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of the shape of `like`: -log E with E ~ Exp(1). In float32 on the generator's device, so
    that a search draws the same on a CPU and on a GPU, and rounds the same whatever the precision of the logits."""
    exponential = torch.empty(like.shape, device=generator.device).exponential_(generator=generator)
    # E can round to 0, where the logarithm has no finite value.
    noise = -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()
    if like.device.type == "cuda" and noise.device.type == "cpu":
        return noise.pin_memory().to(like.device, non_blocking=True)  # or the host would wait for the GPU
    return noise.to(like.device)


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """y (choices, candidates), differentiable in the logits, and the index of its largest entry (choices,): an exact
    draw from p. Computed in float32 at least, returned in the type of the logits."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    perturbed = wide.log_softmax(dim=-1) + gumbel_noise(wide, generator)
    # argmax of the perturbed logits, not of y: at a high temperature softmax rounds neighbours to ties.
    return (perturbed / temperature).softmax(dim=-1).to(logits), perturbed.argmax(dim=-1)


def straight_through(drawn: Tensor, soft: Tensor) -> Tensor:
    """onehot(drawn) forward, exactly; the gradient of `soft` backward."""
    return torch.zeros_like(soft).scatter_(-1, drawn[:, None], 1.0) + (soft - soft.detach())


@dataclass(frozen=True, kw_only=True)
class Stochastic:
    """What the samplers that draw, and learn from it, have in common.

    samples: independent draws that the gradient of an architecture step is the mean of, at as many times its cost and
    the memory of one. The weight step takes one draw all the same: the weights see another one in the next step, which
    costs as much and makes more progress.
    """

    samples: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"sampler.samples must be at least 1, got {self.samples}", fix="set sampler.samples=1")


@dataclass(frozen=True)
class Softmax:
    """p itself: every operation runs, weighted (DARTS, Liu et al. 2019, eq. 2). Takes no temperature, draws nothing."""

    relaxed = True
    samples = 1

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        return Gates(logits.softmax(dim=-1))


@dataclass(frozen=True)
class GumbelSoftmax(Stochastic):
    """y: every operation runs, weighted at random (SNAS, Xie et al. 2019)."""

    relaxed = True

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        return Gates(gumbel_softmax(logits, temperature, generator)[0])


@dataclass(frozen=True)
class StraightThrough(Stochastic):
    """onehot(argmax y) forward, y backward; every operation runs, since the backward pass needs every output."""

    relaxed = False

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        soft, drawn = gumbel_softmax(logits, temperature, generator)
        return Gates(straight_through(drawn, soft))


@dataclass(frozen=True)
class GDAS(Stochastic):
    """One drawn operation k = argmax y an edge (Dong & Yang 2019). The output is h_k o_k(x) with
    h = onehot(k) + y - stopgrad(y). How the logits learn is a matter of the estimator:

    sampled: only operation k runs, and only h_k carries gradient: the formula as it stands in the paper.
    autodl: only operation k runs, and the gates of the others are added as scalars, as in the authors' public code;
        they get a gradient as if their operations had returned 1.
    full: every operation runs, so that every gate gets its true gradient: `StraightThrough`, the reference.
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
    """onehot(drawn) forward; backward Heun's method instead of straight-through's Euler step (Liu et al. 2023,
    algorithm 2): pi_1 = (D + softmax(logits / tau)) / 2, gradient of 2 softmax(log pi_1) - softmax(logits) / 2."""
    probs = logits.softmax(dim=-1)
    hard = torch.zeros_like(probs).scatter_(-1, drawn[:, None], 1.0)
    with torch.no_grad():
        middle = (hard + (logits / temperature).softmax(dim=-1)) / 2
        # Where the logits are -inf, at the padding, the difference is not a number and not wanted.
        shift = torch.where(logits.isfinite(), middle.log() - logits, torch.zeros_like(logits))
    return straight_through(drawn, 2 * (shift + logits).softmax(dim=-1) - probs / 2)


@dataclass(frozen=True)
class Uniform:
    """One operation an edge, all equally likely, nothing learnt: the single-path random baseline (Li & Talwalkar
    2019). The logits stay as they were initialised, so what is derived is a random architecture."""

    relaxed = False
    samples = 1

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        flat = torch.zeros_like(logits.detach()).masked_fill(logits.detach() == -torch.inf, -torch.inf)
        soft, drawn = gumbel_softmax(flat, 1.0, generator)
        return Gates(torch.zeros_like(soft).scatter_(-1, drawn[:, None], 1.0), drawn)


@dataclass(frozen=True)
class Dirichlet(Stochastic):
    """Weights ~ Dirichlet(elu(logits) + 1), differentiable by implicit reparameterisation; every operation runs
    (DrNAS, Chen et al. 2021). Takes no temperature. Its mean is proportional to elu(logits) + 1."""

    relaxed = True

    def __call__(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Gates:
        # In float64 (MPS has none), where a candidate of a very negative logit still has a weight and a gradient.
        wide = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
        candidates = logits != -torch.inf
        open_rows = wide.masked_fill(~candidates, 0.0)
        # elu + 1, without the rounding of 1 + expm1.
        above = open_rows > 0
        concentration = torch.where(above, open_rows + 1, open_rows.masked_fill(above, 0.0).exp()).clamp_min(1e-30)
        drawn: Tensor = DirichletSample.apply(concentration, candidates, generator)
        return Gates(drawn.to(logits))


class DirichletSample(torch.autograd.Function):
    """(rows, candidates) concentrations, of which `candidates` says which count -> weights whose rows sum to 1.

    Forward: normalised gamma variates G(a) = G(a + 1) U^(1/a), by their logarithms, as G(a) of a small a underflows to
    a row of zeros. Backward: the derivative of torch.distributions.Dirichlet. Its variance is a fifth to a third less
    than through normalised gamma variates (at concentrations from 0.2 to 3), and it is right at small a as well.
    """

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, candidates: Tensor, generator: torch.Generator) -> Tensor:
        host = concentration.detach().to(generator.device)
        uniform = torch.empty_like(host).exponential_(generator=generator)  # -log U
        logarithm = torch._standard_gamma(host + 1, generator=generator).log() - uniform / host
        weights = logarithm.to(concentration.device).masked_fill(~candidates, -torch.inf).softmax(dim=-1)
        weights = weights.masked_fill(concentration.isnan(), torch.nan)  # of which gamma may make a number
        ctx.save_for_backward(weights, concentration, candidates)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        weights, concentration, candidates = ctx.saved_tensors
        (gradient,) = gradients
        total = concentration.masked_fill(~candidates, 0.0).sum(dim=-1, keepdim=True).expand_as(concentration)
        slope = torch._dirichlet_grad(
            weights.clamp(torch.finfo(weights.dtype).tiny, 1 - torch.finfo(weights.dtype).eps),
            concentration,
            total.contiguous(),
        )
        pulled = slope * (gradient - (weights * gradient).sum(dim=-1, keepdim=True))
        return pulled.masked_fill(~candidates, 0.0), None, None
