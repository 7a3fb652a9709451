"""Data that are given in Python: a map-style data set, tensors, an image folder's path, or a data set family."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from nas.data.bundle import DataBundle, Split
from nas.data.custom import Items, class_labels, class_names, map_style, rounded, unreadable
from nas.data.image_folder import ImageFolder
from nas.data.inputs import Inputs, dtype_name, each, mapped
from nas.data.spec import DataSpec, ImageSpec, Preparation
from nas.data.split import MIB, StreamSplit, TensorSplit
from nas.data.statistics import channel_statistics
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError
from nas.runtime import distributed

STATISTICS = 10_000  # images that give mean and std where not all are in memory
CHANNELS = (1, 3, 4)  # of images as files have them
AT_ONCE = 256  # of them that are stacked at a time


@runtime_checkable
class Family(Protocol):
    """A data set family, as `nas.data.Digits`."""

    def load(self) -> DataBundle: ...


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How given data are read.

    classes: names by label; None: "0", "1", ... up to the largest label. image_size: of the images in a folder, which
    are scaled and cropped to a square of this side; None: they have one size. memory_limit_mb: items of a data set that
    take more MiB are read in every epoch, by `workers` processes.
    """

    classes: Sequence[str] | None = None
    image_size: int | None = None
    workers: int = 2
    memory_limit_mb: int = 4096


def training(given: Any, reading: Reading, *, augment: Augment | Preparation | None = None) -> DataBundle:
    """The given training data, with an empty test split.

    given: a map-style data set of (input, target); a pair (inputs, targets) of tensors; the path of a folder with a
    folder of images for each class; or a data set family, of which the training split is taken. Inputs that are uint8
    of shape (C, H, W) with class labels are images: they are normalised by the statistics of the training images.
    augment: what training batches go through; None: as the family or the folder has it, or nothing.
    Raises DataError for anything else, and for data that are not as described.
    """
    named = isinstance(given, str | Path) or is_family(given)  # its classes have names
    for argument, unused, reason in (
        ("image_size", not isinstance(given, str | Path), "only the images of a folder are scaled"),
        ("classes", named, "a folder and a data set family name their classes themselves"),
    ):
        if unused and getattr(reading, argument) is not None:
            raise ConfigError(
                f"{argument} was given beside a {type(given).__name__}, but {reason}", fix=f"leave {argument} out"
            )
    if isinstance(given, str | Path):
        bundle = ImageFolder(
            root=str(given),
            image_size=reading.image_size,
            workers=reading.workers,
            memory_limit_mb=reading.memory_limit_mb,
        ).training()
    elif is_family(given):
        bundle = given.load()
        bundle = replace(bundle, test=bundle.train.subset(torch.arange(0)), held_out=False)
    else:
        bundle = of_examples(given, reading, what="train")
    return bundle if augment is None else replace(bundle, augment=checked(augment, bundle.spec))


def to_score(given: Any, spec: DataSpec, reading: Reading) -> DataBundle:
    """The data on which a trained network is scored, as the test split. spec: of its training. given: as in `training`,
    but no folder and no family."""
    bundle = of_examples(given, replace(reading, classes=spec.class_names or None), what="test")
    return replace(bundle, train=bundle.train.subset(torch.arange(0)), test=bundle.train)


def of_examples(given: Any, reading: Reading, *, what: str) -> DataBundle:
    """A data set or a pair of tensors as the training split. what: the argument that it was given as."""
    if isinstance(given, tuple | list) and len(given) == 2 and all(map(is_tensors, given)):
        return of_tensors(*prepared(given[0], given[1], what), reading, what=what)
    if isinstance(given, type):
        raise DataError(f"{what} is the class {given.__name__}, expected a data set", fix=f"give {given.__name__}(...)")
    if not map_style(given) or isinstance(given, Tensor | tuple | list | dict):
        raise DataError(
            f"{what} is a {type(given).__name__}, expected a map-style data set, a pair (inputs, targets) of tensors, "
            "or the path of an image folder",
            fix=f"give {what} as (inputs, targets), of arrays by torch.from_numpy, or an object with __len__ and "
            "__getitem__",
        )
    if len(given) == 0:
        raise DataError(f"{what} is empty", fix="give at least one example")
    items = Items(given, what)
    if items.nbytes <= reading.memory_limit_mb * MIB:
        return of_tensors(*items.stacked(), reading, what=what)
    labels = class_labels(items, workers=reading.workers)
    split = StreamSplit(items, labels, workers=reading.workers)
    like_inputs, like_target = items.like
    return DataBundle(
        spec=spec_of(like_inputs, like_target, labels, reading, what=what, images=lambda: some_images(items)),
        train=split,
        test=split.subset(torch.arange(0)),
        augment=None,
    )


def of_tensors(inputs: Inputs, targets: Tensor, reading: Reading, *, what: str) -> DataBundle:
    """inputs: (N, ...), or a tuple of such; targets: (N, ...)."""
    split: Split = TensorSplit(inputs, targets)
    if len(split) == 0:
        raise DataError(f"{what} is empty", fix="give at least one example")
    like = mapped(lambda tensor: tensor[0], inputs)
    return DataBundle(
        spec=spec_of(like, targets[0], split.labels, reading, what=what, images=lambda: iter(each(inputs))),
        train=split,
        test=split.subset(torch.arange(0)),
        augment=None,
        trained_on=digest((*each(inputs), targets)),
    )


def spec_of(
    inputs: Inputs,
    target: Tensor,
    labels: Tensor | None,
    reading: Reading,
    *,
    what: str,
    images: Callable[[], Iterator[Tensor]],
) -> DataSpec:
    """inputs, target: of one example. labels: of all, None where targets are values. images: batches of the inputs, for
    the statistics of images."""
    names = class_names([] if labels is None else [labels], reading.classes, what=what)
    known: dict[str, Any] = {
        "name": what if what != "train" else "data",
        "input_shapes": tuple(tuple(tensor.shape) for tensor in each(inputs)),
        "target_shape": tuple(target.shape),
        "class_names": names,
    }
    if (
        isinstance(inputs, Tensor)
        and inputs.ndim == 2
        and inputs.dtype == torch.uint8
        and names
        and distributed.first()
    ):
        print(
            f"warning: the inputs of {what} have the shape {tuple(inputs.shape)} and no channels, so they are not "
            "read as images; give grey images as images[:, None]",
            file=sys.stderr,
        )
    if isinstance(inputs, Tensor) and inputs.ndim == 3 and names:
        channels, middle, last = inputs.shape
        comes_last = last in CHANNELS and channels not in CHANNELS
        # Other numbers than pixels may have any shape; two equal sizes are height and width.
        if comes_last and (inputs.dtype == torch.uint8 or channels == middle) and distributed.first():
            print(
                f"warning: the images of {what} have the shape {tuple(inputs.shape)}, which is read as (channels, "
                "height, width); give channels that come last as images.permute(0, 3, 1, 2)",
                file=sys.stderr,
            )
        if inputs.dtype == torch.uint8:
            mean, std = channel_statistics(images())
            return ImageSpec(**known, mean=mean, std=std)
    return DataSpec(**known, input_dtypes=tuple(dtype_name(tensor.dtype) for tensor in each(inputs)))


def some_images(items: Items) -> Iterator[Tensor]:
    """Evenly spaced ones, in batches."""
    chosen = range(0, len(items), -(-len(items) // STATISTICS))
    for start in range(0, len(chosen), AT_ONCE):
        yield torch.stack([each(items[index][0])[0] for index in chosen[start : start + AT_ONCE]])


def prepared(inputs: Any, targets: Any, what: str) -> tuple[Inputs, Tensor]:
    """Returns both on the CPU, with numbers in double precision rounded to float32, as items of a data set are."""
    if not isinstance(targets, Tensor):
        raise DataError(f"the targets of {what} are several tensors, expected one", fix="join them into one tensor")

    for tensor in (*each(inputs), targets):
        if strange := unreadable(tensor, is_target=tensor is targets):
            raise DataError(
                f"{what} has {strange}, expected dense tensors, and targets of real numbers",
                fix="give inputs.to_dense(), and complex targets as torch.view_as_real(targets)",
            )
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in (*each(inputs), targets)}
    if len(lengths) > 1:
        raise DataError(
            f"the tensors of {what} have {', '.join(map(str, sorted(lengths)))} examples, expected equally many",
            fix="give a target for each input",
        )
    moved = tuple(rounded(tensor.cpu()) for tensor in each(inputs))
    targets = targets.detach().cpu()
    if targets.is_floating_point():
        targets = targets.float()
    return (moved[0] if isinstance(inputs, Tensor) else moved), targets


def is_family(given: Any) -> TypeGuard[Family]:
    return isinstance(given, Family) and not isinstance(given, type)  # a class has the method, too


def is_tensors(given: Any) -> bool:
    return isinstance(given, Tensor) or (
        isinstance(given, tuple) and bool(given) and all(isinstance(one, Tensor) for one in given)
    )


def digest(given: Sequence[Tensor]) -> str:
    """Equal for the same tensors, by which a run that goes on knows its training examples again."""
    found = hashlib.sha256()
    for tensor in given:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        whole = tensor.resolve_conj().resolve_neg().contiguous()  # a lazy view has other bytes than numbers
        found.update(whole.view(torch.uint8).numpy().data)
    return found.hexdigest()


def checked(augment: Any, spec: DataSpec) -> Augment | Preparation:
    """Raises ConfigError for what does not suit the data."""
    if isinstance(spec, ImageSpec) and not isinstance(augment, Augment):
        raise ConfigError(
            f"augment is a {type(augment).__name__}, expected a nas.data.Augment for images",
            fix="give e.g. augment=nas.data.Augment(crop_padding=4, flip=True)",
        )
    if not isinstance(spec, ImageSpec) and (isinstance(augment, Augment) or not callable(augment)):
        raise ConfigError(
            f"augment is a {type(augment).__name__}, expected a function of (inputs, generator), as the examples are "
            "no images",
            fix="leave it out, or give a function; images are uint8 of shape (C, H, W) with class labels",
        )
    return augment
