"""Trains one network: loop, tasks, metrics, schedules, evaluation."""

from typing import Any

from nas.lazy import lazy

_public = {
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
}
__all__ = sorted(_public)


def __getattr__(name: str) -> Any:
    return lazy(__name__, _public, name)


def __dir__() -> list[str]:
    return __all__
