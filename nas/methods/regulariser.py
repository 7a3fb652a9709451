"""Regularisers are terms that the architecture step adds to its loss: functions of the logits and of progress.

Your own regulariser is a class with `__call__(arch, progress)` and a YAML that names the class; `metrics` is optional.
With ``_partial_: true`` in the YAML the constructor also gets arch (the logits), space (at the size of retraining) and
spec (the `DataSpec`). A checkpoint holds what its `state_dict` returns, for its `load_state_dict`.
"""

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nas.errors import ConfigError, NasError, described
from nas.methods.exponentiated_gradient import ExponentiatedGradient
from nas.runtime import distributed
from nas.settings.building import complete
from nas.supernet.arch_params import ArchParams
from nas.training.schedule import Schedule


def made(name: str, maker: Callable[..., Any], known: Mapping[str, Any]) -> Any:
    """Returns the term that a class or a function makes of `known`: arch, space and spec.

    Raises ConfigError if the class or function does not take these.
    """
    try:
        inspect.signature(maker).bind(**known)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"regulariser.{name} is a class or a function, expected one that makes the term from {', '.join(known)}: "
            f"{error}",
            fix="give an object with __call__(arch, progress) instead; in YAML, leave out _partial_",
        ) from error
    return complete(maker, **known)


class Regulariser(ABC):
    """A term of the architecture step's loss."""

    @abstractmethod
    def __call__(self, arch: ArchParams, progress: float) -> Tensor:
        """Returns a scalar, differentiable in the logits. progress: of the search, in [0, 1], by epoch."""

    def metrics(self, arch: ArchParams) -> Mapping[str, float]:
        """Returns metrics to log beside the term itself."""
        return {}


class Sum(Regulariser):
    """The sum of several terms. terms: name in the log -> term; at least one."""

    def __init__(self, terms: Mapping[str, Regulariser]) -> None:
        self.terms = dict(terms)

    def __call__(self, arch: ArchParams, progress: float) -> Tensor:
        """Raises ConfigError if a term is not one number, or if none of them depends on the logits."""
        total = torch.stack([value_of(name, term, arch, progress) for name, term in self.terms.items()]).sum()
        if torch.is_grad_enabled() and not total.requires_grad:
            raise ConfigError(
                f"regulariser {', '.join(self.terms)} does not depend on the logits, so it changes no gradient",
                fix="compute it from arch.logits or arch.probs() without detach(), times 0 where it is to do nothing",
            )
        return total

    @torch.no_grad()
    def logged(self, arch: ArchParams, progress: float) -> dict[str, float]:
        """Returns ``regulariser/<name>``, the value of each term in the loss, and ``regulariser/<name>/...``, its
        metrics."""
        logged: dict[str, float] = {}
        for name, term in self.terms.items():
            logged[f"regulariser/{name}"] = float(term(arch, progress))
            metrics = term.metrics(arch) if hasattr(term, "metrics") else {}  # a class of one's own may lack it
            logged |= {f"regulariser/{name}/{metric}": value for metric, value in metrics.items()}
        return logged


def value_of(name: str, term: Regulariser, arch: ArchParams, progress: float) -> Tensor:
    """Returns the value of a term. Raises ConfigError if the term fails, or if the value is no scalar: a sum over a
    vector may not be meant."""
    try:
        value = term(arch, progress)
    except NasError:
        raise
    except Exception as error:
        raise ConfigError(
            f"regulariser.{name} fails ({described(error)})", fix="correct its __call__(arch, progress)"
        ) from error
    if isinstance(value, Tensor) and not value.shape:
        return value
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.80}"
    raise ConfigError(
        f"regulariser.{name} returned {got}, expected a tensor with one number", fix="end it with e.g. .mean()"
    )


class Entropy(Regulariser):
    """weight * the mean entropy of the choices, in nats.

    A positive weight pushes the choices towards one candidate. A negative weight keeps the candidates probable.
    """

    def __init__(self, *, weight: Schedule) -> None:
        self.weight = weight

    def __call__(self, arch: ArchParams, progress: float) -> Tensor:
        return self.weight(progress) * arch.entropy().mean()


class BetaDecay(Regulariser):
    """weight * the mean over the choices of log sum_k exp(logit_k), which is smooth max_k logit_k.

    The gradient is p / choices. Each logit decreases in proportion to its own probability, so the leading candidates
    lose most and the probabilities stay closer together.
    Source: Ye et al. 2022 (beta-DARTS), the loss L_Beta. The mean over the choices is as in
    the authors' public code, where the weight is 0.5 times the epoch.
    """

    def __init__(self, *, weight: Schedule) -> None:
        self.weight = weight

    def __call__(self, arch: ArchParams, progress: float) -> Tensor:
        return self.weight(progress) * arch.masked().logsumexp(dim=-1).mean()


def warn_of_no_effect(terms: Mapping[str, object], optimizer: Optimizer) -> None:
    """Prints a warning of a term that the optimiser of the logits takes no notice of. terms: by the names of their
    settings."""
    without = [name for name, term in terms.items() if isinstance(term, BetaDecay)]
    if without and isinstance(optimizer, ExponentiatedGradient) and distributed.first():
        # Its gradient is theta / choices, so the same for all candidates once it is divided by theta.
        print(
            f"warning: {without[0]} has no effect with exponentiated gradients, which normalise it away; leave it "
            "out, or set optim@arch_optim=adam",
            file=sys.stderr,
        )
