"""A loaded data set: its training and test splits, and what the rest of the project must know about them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from nas.data.inputs import Inputs
from nas.data.mixing import Mixing
from nas.data.policy import Policy
from nas.data.spec import DataSpec, ImageSpec, Preparation
from nas.data.stratify import stratified_indices
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError


class Split(Protocol):
    """The examples of one split."""

    @property
    def labels(self) -> Tensor | None:
        """Returns the class labels, (N,) int64 on the CPU, or None if the targets are not class labels."""
        ...

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> "Split":
        """Returns the examples at `indices`, (M,) int64, in that order. Does not copy the inputs."""
        ...

    def batches(self, order: Sequence[Tensor], *, device: torch.device) -> Iterator[tuple[Inputs, Tensor]]:
        """Yields one batch for each index vector of `order`, on `device`.

        Inputs are (B, ...), uint8 for images. Targets are (B, ...), int64 for classes.
        """
        ...


@dataclass(frozen=True)
class DataBundle:
    """A loaded data set.

    test: only for the final score. A search gets the two parts of `search_splits`, which give no access to the test
    split.
    augment: augments training examples: an `Augment` for images, or a function for any inputs.
    trained_on: identifies the examples in `train`; None if they are always the same.
    held_out: whether the test examples were held out of the set, because it has no test split.
    found: what a data set family knows about its files, for `nas.data.survey`.
    sample: digests of some training files, to recognise copies of them elsewhere; empty if there are none.
    """

    spec: DataSpec
    train: Split
    test: Split
    augment: Augment | Preparation | None
    trained_on: str | None = None
    held_out: bool = False
    found: Mapping[str, Any] = field(default_factory=dict)
    sample: tuple[str, ...] = ()

    @property
    def seen(self) -> dict[str, Any]:
        """Returns what a checkpoint records about the training examples."""
        return {"trained_on": self.trained_on, "training_sample": list(self.sample)}

    def augmented(self, *, cutout: int, policy: Policy | None) -> Augment | Preparation | None:
        """Returns `augment`; for images, with a cutout square of this side in pixels, and with a policy. What is 0 or
        None here is as `augment` has it.

        Raises ConfigError if cutout or a policy is set and the examples are not images, or not images that a policy
        takes.
        """
        augment = Augment() if self.augment is None and isinstance(self.spec, ImageSpec) else self.augment
        if isinstance(augment, Augment):
            policy = policy or augment.policy
            if policy is not None and self.spec.channels not in (1, 3):
                raise ConfigError(
                    f"retrain.policy takes images of 1 or 3 channels, got {self.spec.channels} in {self.spec.name!r}",
                    fix="set policy@retrain.policy=null",
                )
            return replace(augment, cutout=cutout or augment.cutout, policy=policy)
        for value, got, fix in (
            (cutout, f"cutout is {cutout}", "retrain.cutout=0"),
            (policy, f"policy is {type(policy).__name__}", "policy@retrain.policy=null"),
        ):
            if value:
                raise ConfigError(
                    f"retrain.{got}, but the examples of {self.spec.name!r} are not images", fix=f"set {fix}"
                )
        return augment

    def mixing(self, *, mixup: float, cutmix: float) -> Mixing | None:
        """Returns mixup and cutmix for training batches, or None if both are 0.

        Raises ConfigError if the examples are not images with class labels.
        """
        if mixup == cutmix == 0:
            return None
        if not isinstance(self.spec, ImageSpec):
            raise ConfigError(
                f"retrain.mixup is {mixup} and retrain.cutmix {cutmix}, but the examples of {self.spec.name!r} are not "
                "images",
                fix="set retrain.mixup=0 and retrain.cutmix=0",
            )
        return Mixing(classes=self.spec.num_classes, mixup=mixup, cutmix=cutmix)

    def search_splits(self, *, weight_fraction: float, seed: int) -> tuple[Split, Split]:
        """Returns two disjoint parts of `train`: one for the weights of the supernet, one for the architecture.

        The first part has `weight_fraction` of the examples, the second part has the rest. Each part has every class in
        proportion, if there are classes. The same seed gives the same parts. Raises ConfigError if the fraction is
        outside (0, 1), DataError if a part is empty. Source: Liu et al. 2019 (DARTS), sec. 3.1: half of the training
        set each.
        """
        if not 0 < weight_fraction < 1:
            raise ConfigError(
                f"weight_fraction must lie strictly between 0 and 1, got {weight_fraction}",
                fix="set search.weight_fraction to e.g. 0.5",
            )
        # Without classes, all examples count as one class: stratifying then splits at random.
        labels = torch.zeros(len(self.train)) if self.train.labels is None else self.train.labels
        weight, arch = stratified_indices(labels, fraction=weight_fraction, seed=seed)
        for part, indices in (("weight", weight), ("architecture", arch)):
            if len(indices) == 0:
                raise DataError(
                    f"the {part} part of the {len(self.train)} training examples of {self.spec.name!r} would be empty"
                    f" (weight_fraction {weight_fraction})",
                    fix="add training examples, at least two in some class",
                )
        return self.train.subset(weight), self.train.subset(arch)

    def retrain_splits(self, *, validation: float, seed: int) -> tuple[Split, Split | None]:
        """The examples of `train` that retraining learns from, and a `validation` part of them, with every class in
        proportion, that it does not see; None if that part is 0.

        The same for the same seed. Raises ConfigError if `validation` is outside [0, 1), DataError if a part is empty.
        """
        if not 0 <= validation < 1:
            raise ConfigError(
                f"retrain.validation must be at least 0 and below 1, got {validation}", fix="set retrain.validation=0.1"
            )
        if validation == 0:
            return self.train, None
        labels = torch.zeros(len(self.train)) if self.train.labels is None else self.train.labels
        learnt, held_out = stratified_indices(labels, fraction=1 - validation, seed=seed)
        if len(learnt) == 0 or len(held_out) == 0:
            raise DataError(
                f"retrain.validation={validation} of the {len(self.train)} training examples of {self.spec.name!r} "
                "leaves a part empty",
                fix="add training examples, or set retrain.validation=0",
            )
        return self.train.subset(learnt), self.train.subset(held_out)
