"""The search methods: searchers, samplers, regularisers and derivers."""

from typing import Any

from nas.lazy import lazy

_public = {
    "BestOf": "best_of",
    "CollapseMonitor": "collapse",
    "Latency": "cost_regularisers",
    "Macs": "cost_regularisers",
    "Parameters": "cost_regularisers",
    "Argmax": "deriver",
    "TopPredecessors": "deriver",
    "ExponentiatedGradient": "exponentiated_gradient",
    "FirstOrder": "first_order",
    "Perturbation": "perturbation",
    "BetaDecay": "regulariser",
    "Entropy": "regulariser",
    "Dirichlet": "dirichlet",
    "GDAS": "sampler",
    "GumbelSoftmax": "sampler",
    "Softmax": "sampler",
    "StraightThrough": "sampler",
    "Uniform": "sampler",
    "draw": "sampler",
    "ScoreFunction": "score_function",
    "SecondOrder": "second_order",
}
__all__ = sorted(_public)


def __getattr__(name: str) -> Any:
    return lazy(__name__, _public, name)


def __dir__() -> list[str]:
    return __all__
