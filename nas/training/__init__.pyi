from .schedule import (
    Constant as Constant,
    Cosine as Cosine,
    CosineByEpoch as CosineByEpoch,
    Exponential as Exponential,
    Linear as Linear,
    LinearByEpoch as LinearByEpoch,
    OneCycle as OneCycle,
    Step as Step,
)
from .task import Classification as Classification, Custom as Custom, Regression as Regression
