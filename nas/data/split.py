"""Where the examples of a split live: in memory, or where worker processes read them as they are needed."""

import copy
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nas.data.inputs import Inputs, each, mapped
from nas.errors import DataError

MIB = 2**20


def fits_in_memory(*, images: int, shape: tuple[int, int, int], limit_mb: int) -> bool:
    """Whether `images` uint8 images of `shape` (C, H, W) take at most `limit_mb` MiB."""
    channels, height, width = shape
    return images * channels * height * width <= limit_mb * MIB


class _Memory:
    """All inputs of a data set, and one copy of them on the device that asked last; its subsets share both."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = inputs
        self._resident = inputs

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        if self.inputs[0].device.type == device.type == "cpu":
            return self.inputs
        if self._resident[0].device != torch.empty(0, device=device).device:  # "cuda" is "cuda:0" once allocated
            self._resident = tuple(tensor.to(device) for tensor in self.inputs)
        return self._resident


class TensorSplit:
    """A split held in memory. It is moved to the device once, on first use, and indexed there: no workers, no copies.

    inputs: (N, ...), of images (N, C, H, W) uint8, or a tuple of such; targets: (N, ...). All on the CPU. Targets that
    are one integer an example are class labels.
    """

    def __init__(self, inputs: Inputs, targets: Tensor) -> None:
        lengths = [len(tensor) for tensor in (*each(inputs), targets)]
        if len(set(lengths)) > 1:
            raise DataError(
                f"a split needs as many targets as inputs, got {lengths[:-1]} inputs and {lengths[-1]} targets",
                fix="correct the data set",
            )
        self._memory = _Memory(each(inputs))
        self._several = isinstance(inputs, tuple)
        self._targets = targets if targets.is_floating_point() else targets.long()
        self._rows = torch.arange(len(targets))  # which of the shared inputs are in this split

    @property
    def labels(self) -> Tensor | None:
        return None if self._targets.is_floating_point() or self._targets.ndim > 1 else self._targets

    def __len__(self) -> int:
        return len(self._rows)

    def subset(self, indices: Tensor) -> "TensorSplit":
        part = copy.copy(self)
        part._targets = self._targets[indices]
        part._rows = self._rows[indices]
        return part

    def batches(self, order: Sequence[Tensor], *, device: torch.device) -> Iterator[tuple[Inputs, Tensor]]:
        if not order:
            return
        inputs = self._memory.on(device)
        # One transfer of all indices and targets, not two a batch.
        flat = torch.cat(list(order))
        sizes = [len(indices) for indices in order]
        rows = torch.split(self._rows[flat].to(device), sizes)
        targets = torch.split(self._targets[flat].to(device), sizes)
        for batch_rows, batch_targets in zip(rows, targets, strict=True):
            batch = tuple(tensor[batch_rows] for tensor in inputs)
            yield batch if self._several else batch[0], batch_targets


class Source(Protocol):
    """Examples that are read one at a time. Item i is (inputs, target), of images ((C, H, W) uint8, label); it raises
    DataError if unreadable."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Inputs, Tensor | int]: ...


class StreamSplit:
    """A split too large for memory: `workers` processes read `source` ahead of the training loop.

    labels: (N,) integers; None where targets are not class labels. workers: 0 reads in the training process. The
    processes start on first use and stay.
    """

    def __init__(self, source: Source, labels: Tensor | None, *, workers: int) -> None:
        self.labels = None if labels is None else labels.long()
        self._source = source
        self._workers = workers
        self._rows = torch.arange(len(source))
        self._order: list[list[int]] = []  # what the batch sampler of the loader reads, set for each epoch
        self._loader: DataLoader[_Item] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def subset(self, indices: Tensor) -> "StreamSplit":
        labels = None if self.labels is None else self.labels[indices]
        part = StreamSplit(self._source, labels, workers=self._workers)
        part._rows = self._rows[indices]
        return part

    def batches(self, order: Sequence[Tensor], *, device: torch.device) -> Iterator[tuple[Inputs, Tensor]]:
        if not order:
            return
        self._order[:] = [self._rows[indices].tolist() for indices in order]
        if self._loader is None:
            self._loader = self._make_loader(pin_memory=device.type == "cuda")
        for batch in self._loader:
            if isinstance(batch, _Unreadable):
                self._loader = None  # ends the workers now, and not when the traceback is collected
                raise DataError(batch.problem, fix=batch.fix)
            inputs, targets = batch
            moved = mapped(lambda tensor: tensor.to(device, non_blocking=True), inputs)
            yield moved, targets.to(device, non_blocking=True)

    def _make_loader(self, *, pin_memory: bool) -> "DataLoader[_Item]":
        return DataLoader(
            _Guarded(self._source),
            batch_sampler=self._order,
            collate_fn=_collate,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=pin_memory,
            # Of its own, or every pass would draw a seed for the workers from torch's global generator.
            generator=torch.Generator(),
        )


class _Unreadable:
    """The message of a DataError, to carry it out of a worker process: there it would become a RuntimeError."""

    def __init__(self, error: DataError) -> None:
        self.problem, _, self.fix = str(error).rpartition("; ")


_Item = tuple[Inputs, Tensor | int] | _Unreadable


class _Guarded(Dataset["_Item"]):
    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, index: int) -> "_Item":
        try:
            return self._source[index]
        except DataError as error:
            return _Unreadable(error)


def _collate(items: "list[_Item]") -> tuple[Inputs, Tensor] | _Unreadable:
    inputs, targets = [], []
    for item in items:
        if isinstance(item, _Unreadable):
            return item
        inputs.append(item[0])
        targets.append(torch.as_tensor(item[1]))
    stacked = tuple(torch.stack(tensors) for tensors in zip(*map(each, inputs), strict=True))
    return stacked if isinstance(inputs[0], tuple) else stacked[0], torch.stack(targets)
