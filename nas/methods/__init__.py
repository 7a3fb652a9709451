"""The search: steps, samplers, regularisers, derivers, caps and costs."""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
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
    },
)
