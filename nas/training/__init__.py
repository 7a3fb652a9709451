"""Trains one network: loop, tasks, metrics, schedules and evaluation."""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Constant": "schedule",
        "Cosine": "schedule",
        "CosineByEpoch": "schedule",
        "Exponential": "schedule",
        "Linear": "schedule",
        "LinearByEpoch": "schedule",
        "OneCycle": "schedule",
        "Step": "schedule",
        "Classification": "task",
        "Custom": "task",
        "Regression": "task",
    },
)
