from . import (
    adapt as adapt,
    data as data,
    errors as errors,
    formats as formats,
    methods as methods,
    runtime as runtime,
    spaces as spaces,
    storage as storage,
    supernet as supernet,
    training as training,
)
from .adapt.insertion import insert as insert
from .api import evaluate as evaluate, export as export, retrain as retrain, search as search
from .formats.load import load as load
from .methods import (
    GDAS as GDAS,
    Dirichlet as Dirichlet,
    GumbelSoftmax as GumbelSoftmax,
    ScoreFunction as ScoreFunction,
    Softmax as Softmax,
    StraightThrough as StraightThrough,
    Uniform as Uniform,
)
from .supernet import ArchParams as ArchParams, Choice as Choice, Genotype as Genotype, freeze as freeze, gates as gates

__version__: str
