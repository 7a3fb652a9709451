from .checkpointing import Checkpoints as Checkpoints
from .metrics_log import JsonLines as JsonLines
from .mlflow_tracker import MLflow as MLflow
from .tensorboard_tracker import TensorBoard as TensorBoard
from .trackio_tracker import Trackio as Trackio
from .wandb_tracker import WandB as WandB
