"""The user's own data: any pair of map-style torch Datasets, not necessarily images."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Generator, Tensor
from torch.utils.data import IterableDataset

from nas.data.bundle import DataBundle, Split
from nas.data.inputs import Inputs, dtype_name, each, form, mapped
from nas.data.spec import DataSpec
from nas.data.split import MIB, StreamSplit, TensorSplit
from nas.errors import ConfigError, DataError, described
from nas.runtime.user_functions import Factory, call, import_path

READ_AHEAD = 64  # items that a worker process reads at a time while the labels are collected
READ_TWICE = 16  # items that are read again, to find what is random: a flip of every second item misses 1 in 65,536


@dataclass(frozen=True, kw_only=True)
class Custom:
    """The user's own data set, made by a function.

    factory: a function that returns (train, test). arguments: its keyword arguments.

    Items are (inputs, target). The inputs are a tensor, or a tuple of tensors for a network with several inputs. The
    target is a number or a tensor. One integer is a class label, counted from 0; anything else is a value. Numbers in
    double precision are rounded to float32. All items have one shape. An item must be the same each time it is read, so
    that a run can be repeated and continued: random changes belong into `augment`.

    classes: names of the classes, by label; None: "0", "1", ... up to the largest label.
    augment: (inputs, generator) -> inputs, for a batch of training inputs on the device. It draws its random numbers
    from the generator, which is on the CPU.
    memory_limit_mb: if all items take more MiB than this, `workers` processes read them again in every epoch.
    """

    factory: Factory
    arguments: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    augment: Callable[[Inputs, Generator], Inputs] | None = None
    memory_limit_mb: int = 4096
    workers: int = 2

    def load(self) -> DataBundle:
        """Loads the data set.

        Raises ConfigError if a setting cannot work, DataError if the data are not as described.
        """
        for field_name in ("workers", "memory_limit_mb"):
            if (value := getattr(self, field_name)) < 0:
                raise ConfigError(f"data.{field_name} must be >= 0, got {value}", fix=f"set data.{field_name}=0")
        if self.augment is not None and not callable(self.augment):
            raise ConfigError(
                f"data.augment must be a function of (inputs, generator), got {self.augment!r}",
                fix="set data.augment={_target_: my_module.my_function, _partial_: true}",
            )
        train, test = self._pair()
        inputs, target = train.like
        in_memory = train.nbytes + test.nbytes <= self.memory_limit_mb * MIB
        splits: list[Split] = [
            TensorSplit(*items.stacked())
            if in_memory
            else StreamSplit(items, class_labels(items, workers=self.workers), workers=self.workers)
            for items in (train, test)
        ]
        return DataBundle(
            spec=DataSpec(
                name=import_path(self.factory).rpartition(".")[2],
                input_shapes=tuple(tuple(tensor.shape) for tensor in each(inputs)),
                input_dtypes=tuple(dtype_name(tensor.dtype) for tensor in each(inputs)),
                target_shape=tuple(target.shape),
                class_names=class_names(
                    [split.labels for split in splits if split.labels is not None],
                    self.classes,
                    what=import_path(self.factory),
                ),
            ),
            train=splits[0],
            test=splits[1],
            augment=self.augment,
        )

    def _pair(self) -> "tuple[Items, Items]":
        made = call(self.factory, self.arguments, offered={}, setting="data")
        pair = tuple(made) if isinstance(made, tuple | list) else ()
        if len(pair) != 2 or not all(map(map_style, pair)):
            got = f"({', '.join(type(part).__name__ for part in pair)})" if pair else f"a {type(made).__name__}"
            raise DataError(
                f"data.factory {import_path(self.factory)} returned {got}, expected a pair of map-style torch Datasets",
                fix="return (train, test), two objects with __len__ and __getitem__",
            )
        for part, what in zip(pair, ("training", "test"), strict=True):
            if len(part) == 0:
                raise DataError(
                    f"the {what} set of {import_path(self.factory)} is empty", fix="return at least one item in each"
                )
        train = Items(pair[0], f"the training set of {import_path(self.factory)}")
        return train, Items(pair[1], f"the test set of {import_path(self.factory)}", like=train.like)


def class_labels(items: "Items", *, workers: int) -> Tensor | None:
    """Returns the class labels of items that are not in memory, or None if targets are values. Reads all items once."""
    _, target = items.like
    if target.is_floating_point() or target.ndim > 0:
        return None
    order = torch.arange(len(items)).split(READ_AHEAD)
    batches = StreamSplit(items, None, workers=workers).batches(order, device=torch.device("cpu"))
    return torch.cat([targets for _, targets in batches])


def class_names(labels: Sequence[Tensor], names: Sequence[str] | None, *, what: str) -> tuple[str, ...]:
    """Returns the names of the classes by label; without given names "0", "1", ...

    labels: of each split, the training split first; empty if targets are values. names: the given names. what: names
    the source of the labels in errors. Raises DataError if the integers are no class labels.
    """
    if isinstance(names, str | Mapping | Set):  # the keys of a mapping may be labels; a set has no order
        got = f"the text {names!r}" if isinstance(names, str) else f"a {type(names).__name__}"
        raise DataError(f"classes of {what} are {got}, expected a list of names", fix="give ['a', 'b', ...], by label")
    names = None if names is None else tuple(map(str, names))
    if not labels:
        return names or ()
    lowest, highest = (int(extreme) for extreme in torch.cat(list(labels)).aminmax())
    # Without names, the largest label gives the number of classes. More classes than examples are an error.
    most = max(2, len(labels[0])) if names is None else len(names)
    if lowest < 0 or highest >= most:
        raise DataError(
            f"the targets of {what} are integers from {lowest} to {highest}, expected class "
            f"labels from 0 to at most {most - 1}",
            fix="count the classes from 0, name all in data.classes, or return floats if they are values",
        )
    return tuple(map(str, range(max(2, highest + 1)))) if names is None else names


class Items:
    """The items of a Dataset as tensors of the types that networks take (a `Source`). Every item is checked.

    what: names the data set in messages. like: an example with the types and shapes that all items must have; None: the
    first item. Raises DataError if an item is malformed, differs from `like`, changes when it is read again, or is
    overwritten when others are read. The length is that at construction.
    """

    def __init__(self, dataset: Any, what: str, *, like: tuple[Inputs, Tensor] | None = None) -> None:
        self._dataset = dataset
        self._length = len(dataset)
        self._what = what
        self.like = like or self._read(0)
        read: dict[int, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}
        for index in range(0, self._length, -(-self._length // READ_TWICE)):
            item = tensors(self[index])
            read[index] = item, tuple(map(Tensor.clone, item))
        for index, (item, copies) in read.items():  # first, as reading an item again may write into its own memory
            if not all(map(same, item, copies)):
                self._reject(index, "overwritten when another item is read", "a tensor of its own: return a clone()")
        for index, (_, copies) in read.items():
            if not all(map(same, tensors(self[index]), copies)):
                self._reject(index, "different each time it is read", "the same: put what is random into data.augment")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Inputs, Tensor]:
        item = self._read(index)
        if form_of(item) != form_of(self.like):
            self._reject(index, form_of(item), f"{form_of(self.like)} as in the first training item")
        return item

    @property
    def nbytes(self) -> int:
        return len(self) * sum(tensor.nbytes for tensor in tensors(self.like))

    def stacked(self) -> tuple[Inputs, Tensor]:
        """Returns all items: inputs (N, ...) and targets (N, ...)."""
        columns = [tensor.new_empty(len(self), *tensor.shape) for tensor in tensors(self.like)]
        for index in range(len(self)):
            for column, tensor in zip(columns, tensors(self[index]), strict=True):
                column[index] = tensor
        *inputs, targets = columns
        return tuple(inputs) if isinstance(self.like[0], tuple) else inputs[0], targets

    def _read(self, index: int) -> tuple[Inputs, Tensor]:
        try:
            item = self._dataset[index]
        except Exception as error:  # of a user's own code
            self._reject(index, f"not there ({described(error)})", "a pair (inputs, target)", error)
        if not isinstance(item, tuple | list) or len(item) != 2:
            self._reject(index, f"a {type(item).__name__}", "a pair (inputs, target)")
        inputs, target = item
        parts = inputs if isinstance(inputs, tuple) else (inputs,)
        if not parts or not all(isinstance(tensor, Tensor) for tensor in parts):
            kinds = ", ".join(type(tensor).__name__ for tensor in parts)
            self._reject(index, f"inputs of type {kinds or '()'}", "a tensor, or a tuple of tensors")
        try:
            target = torch.as_tensor(target).detach()
        except (TypeError, ValueError, RuntimeError):
            self._reject(index, f"a target of type {type(target).__name__}", "a number or a tensor")
        for tensor in (*parts, target):
            if strange := unreadable(tensor, is_target=tensor is target):
                self._reject(index, strange, "dense tensors, and a target of real numbers")
        return mapped(rounded, inputs), target.float() if target.is_floating_point() else target.long()

    def _reject(self, index: int, got: str, expected: str, cause: Exception | None = None) -> NoReturn:
        raise DataError(
            f"item {index} of {self._what} is {got}, expected {expected}", fix="correct its __getitem__"
        ) from cause


def map_style(dataset: Any) -> bool:
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)


def tensors(item: tuple[Inputs, Tensor]) -> tuple[Tensor, ...]:
    return (*each(item[0]), item[1])


def rounded(tensor: Tensor) -> Tensor:
    """Returns the numbers in single precision if they are in double precision. The tensor has no history of
    gradients."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def unreadable(tensor: Tensor, *, is_target: bool) -> str:
    """Returns what a tensor is that no batch can be made of, or no loss for a target; empty if there is no problem."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return "a sparse or nested tensor"
    return "a target of complex numbers" if is_target and tensor.is_complex() else ""


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape have the same numbers, of which some may be NaN."""
    return bool(((one == other) | ((one != one) & (other != other))).all())


def form_of(item: tuple[Inputs, Tensor]) -> str:
    """Returns the types and shapes of an item as text."""
    *inputs, target = map(form, tensors(item))
    return f"({', '.join(inputs)}) with target {target}"
