"""What a data set family hands to the rest of the project: images in two splits, and what the network must know."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from nas.data.stratify import stratified_indices
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError


@dataclass(frozen=True)
class DataSpec:
    """What a network, and an exported artefact, must know about its input.

    mean, std: per channel, of pixels scaled to [0, 1].
    class_names: by label. Raises DataError if the fields do not fit each other.
    """

    name: str
    channels: int
    height: int
    width: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for field in ("channels", "height", "width"):
            if getattr(self, field) < 1:
                self._reject(f"{field} must be at least 1, got {getattr(self, field)}")
        if len(self.class_names) < 2:
            self._reject(f"a classifier needs at least 2 classes, got {list(self.class_names)}")
        if len(set(self.class_names)) < len(self.class_names):
            self._reject(f"class names must differ from each other, got {list(self.class_names)}")
        for field in ("mean", "std"):
            got = getattr(self, field)
            if len(got) != self.channels:
                self._reject(f"{field} must have one value for each of {self.channels} channels, got {got}")
        if not all(value > 0 for value in self.std):
            self._reject(f"std must be > 0, got {self.std}")

    def _reject(self, problem: str) -> None:
        raise DataError(f"data spec {self.name!r}: {problem}", fix="correct the data set, or the file this comes from")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.channels, self.height, self.width)

    def to_dict(self) -> dict[str, object]:
        """Plain lists, strings and numbers: what JSON keeps."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataSpec":
        """The inverse of `to_dict`. Raises DataError if a key is missing, unknown, or of the wrong type."""
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            raise DataError(
                f"a data spec has the keys {sorted(expected)}, got {sorted(values)}",
                fix="write it with DataSpec.to_dict of this version",
            )
        try:
            return cls(
                name=_typed(values["name"], str),
                channels=_typed(values["channels"], int),
                height=_typed(values["height"], int),
                width=_typed(values["width"], int),
                class_names=tuple(_typed(name, str) for name in _typed(values["class_names"], list, tuple)),
                mean=tuple(float(_typed(value, int, float)) for value in _typed(values["mean"], list, tuple)),
                std=tuple(float(_typed(value, int, float)) for value in _typed(values["std"], list, tuple)),
            )
        except TypeError as error:
            raise DataError(f"data spec: {error}", fix="write it with DataSpec.to_dict of this version") from error


def _typed(value: Any, *kinds: type) -> Any:
    # bool is an int to Python, never to a user.
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"expected {' or '.join(kind.__name__ for kind in kinds)}, got {value!r}")
    return value


class Split(Protocol):
    """Labelled images of one split. `labels`: (N,) int64, on the CPU."""

    labels: Tensor

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> "Split":
        """The images at `indices`, (M,) int64, in that order; no pixel is copied."""
        ...

    def batches(self, order: Sequence[Tensor], *, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch for each index vector of `order`: images (B, C, H, W) uint8, labels (B,) int64, on `device`."""
        ...


@dataclass(frozen=True)
class DataBundle:
    """A data set, loaded.

    test: for the final score only. A search is given the two halves of `search_splits`, which hold no way to it.
    augment: what training images go through in this data set.
    """

    spec: DataSpec
    train: Split
    test: Split
    augment: Augment

    def search_splits(self, *, weight_fraction: float, seed: int) -> tuple[Split, Split]:
        """Two disjoint parts of `train`, each with every class in proportion: one to train the weights of the
        supernet (`weight_fraction` of the images), one to train the architecture (the rest).

        The same for the same seed. Raises ConfigError if the fraction is outside (0, 1), DataError if a part is empty.
        Source: Liu et al. 2019 (DARTS), sec. 3.1: half of the training set each.
        """
        if not 0 < weight_fraction < 1:
            raise ConfigError(
                f"weight_fraction must lie strictly between 0 and 1, got {weight_fraction}",
                fix="set search.weight_fraction to e.g. 0.5",
            )
        weight, arch = stratified_indices(self.train.labels, fraction=weight_fraction, seed=seed)
        for part, indices in (("weight", weight), ("architecture", arch)):
            if len(indices) == 0:
                raise DataError(
                    f"the {part} part of the {len(self.train)} training images of {self.spec.name!r} would be empty"
                    f" (weight_fraction {weight_fraction})",
                    fix="add training images, at least two in some class",
                )
        return self.train.subset(weight), self.train.subset(arch)
