"""Writes the files of a run: checkpoints, metrics, the manifest, and the locks that protect them."""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Checkpoints": "checkpointing",
        "JsonLines": "metrics_log",
        "MLflow": "mlflow_tracker",
        "TensorBoard": "tensorboard_tracker",
        "Trackio": "trackio_tracker",
        "WandB": "wandb_tracker",
    },
)
