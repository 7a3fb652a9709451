"""Writes the files of a run: checkpoints, metrics, the manifest, and the locks that protect them."""

from typing import Any

from nas.lazy import lazy

_public = {
    "Checkpoints": "checkpointing",
    "JsonLines": "metrics_log",
    "MLflow": "mlflow_tracker",
    "TensorBoard": "tensorboard_tracker",
    "Trackio": "trackio_tracker",
    "WandB": "wandb_tracker",
}
__all__ = sorted(_public)


def __getattr__(name: str) -> Any:
    return lazy(__name__, _public, name)


def __dir__() -> list[str]:
    return __all__
