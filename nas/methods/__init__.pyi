from .best_of import BestOf as BestOf
from .collapse import CollapseMonitor as CollapseMonitor
from .cost_regularisers import Latency as Latency, Macs as Macs, Parameters as Parameters
from .deriver import Argmax as Argmax, TopPredecessors as TopPredecessors
from .dirichlet import Dirichlet as Dirichlet
from .exponentiated_gradient import ExponentiatedGradient as ExponentiatedGradient
from .first_order import FirstOrder as FirstOrder
from .perturbation import Perturbation as Perturbation
from .regulariser import BetaDecay as BetaDecay, Entropy as Entropy
from .sampler import (
    GDAS as GDAS,
    GumbelSoftmax as GumbelSoftmax,
    Softmax as Softmax,
    StraightThrough as StraightThrough,
    Uniform as Uniform,
    draw as draw,
)
from .score_function import ScoreFunction as ScoreFunction
from .second_order import SecondOrder as SecondOrder
