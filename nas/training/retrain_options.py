"""The numbers and the objects that a retraining is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from nas.data.policy import Policy
from nas.errors import ConfigError
from nas.runtime import distributed
from nas.training.inheritance import SCRATCH, STARTS, SUPERNET
from nas.training.job import at_least


@dataclass(frozen=True, kw_only=True)
class RetrainOptions:
    """The numbers of a retraining.

    network: fields of the space that differ from the searched ones. grad_clip, auxiliary_weight, label_smoothing,
    accumulation: see `TrainingStep`. cutout: side of the square that is cut out of training images. drop_path: the rate
    of the last epoch; it rises from 0. drop_path_reached: whether the last epoch has the whole rate, or epoch e of E
    has e / E of it. mixup, cutmix: alphas of the Beta distributions that images are mixed by. average: decay by step of
    a moving average of the weights; 0 for none. validation: the part of the training examples that is held out of the
    training and scored at its end; None for none. start: what training begins with: ``scratch``, the weights with which
    the space builds the network (those of a model that has some), or ``supernet``, those of the search, with
    recalibrated batch norms; None is ``scratch``.
    Raises ConfigError for a number out of its range.
    """

    epochs: int
    batch_size: int
    accumulation: int
    grad_clip: float
    cutout: int
    drop_path: float
    auxiliary_weight: float
    label_smoothing: float
    mixup: float
    cutmix: float
    average: float
    drop_path_reached: bool = True
    validation: float | None = None
    start: str | None = SCRATCH
    network: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.start not in (None, *STARTS):
            raise ConfigError(
                f"retrain.start must be one of {', '.join(STARTS)}, got {self.start!r}",
                fix=f"set retrain.start={SCRATCH}",
            )
        at_least(1, retrain__epochs=self.epochs, retrain__accumulation=self.accumulation)
        fractions = {"drop_path": 0.2, "label_smoothing": 0.1, "average": 0.999}  # and a value that makes sense
        for setting in ("grad_clip", "cutout", "auxiliary_weight", "mixup", "cutmix", *fractions):
            at_least(0, **{f"retrain__{setting}": getattr(self, setting)})
        for setting, example in fractions.items():
            if not (value := getattr(self, setting)) < 1:
                raise ConfigError(
                    f"retrain.{setting} must be below 1, got {value}", fix=f"set retrain.{setting}={example}"
                )
        share = self.batch_size // distributed.world()
        if self.accumulation > share:
            raise ConfigError(
                f"retrain.accumulation splits a batch of {share} into {self.accumulation} parts, expected at most one "
                "for each example",
                fix="set retrain.accumulation=1",
            )
        if self.network.get("auxiliary") and share // self.accumulation < 2:
            raise ConfigError(
                "retrain.accumulation leaves 1 example for the batch norm of the auxiliary head, expected at least 2",
                fix=f"set retrain.accumulation={max(1, share // 2)}",
            )

    @property
    def inherits(self) -> bool:
        """Whether training starts from the weights of a supernet."""
        return self.start == SUPERNET

    @property
    def last_drop_path(self) -> float:
        """The rate of the last epoch E - 1: the whole one, or (E - 1) / E of it, by which epoch e has e / E."""
        return self.drop_path if self.drop_path_reached else self.drop_path * (self.epochs - 1) / self.epochs


@dataclass(frozen=True, kw_only=True)
class RetrainParts:
    """The objects that a retraining is made of. optim: makes the optimiser, from `params`; lr: the schedule of its
    learning rate, from `start`, the optimiser's own. policy: of augmentation, None for none."""

    optim: Callable[..., torch.optim.Optimizer]
    lr: Callable[..., Any]
    policy: Policy | None = None
