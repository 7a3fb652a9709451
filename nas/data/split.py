"""Where the pixels of a split live: in memory, or in files that worker processes read as they are needed."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nas.errors import DataError

MIB = 2**20


def fits_in_memory(*, images: int, shape: tuple[int, int, int], limit_mb: int) -> bool:
    """Whether `images` uint8 images of `shape` (C, H, W) take at most `limit_mb` MiB."""
    channels, height, width = shape
    return images * channels * height * width <= limit_mb * MIB


class _Pixels:
    """All images of a data set, and one copy of them on the device that asked last; its subsets share both."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self._resident = images

    def on(self, device: torch.device) -> Tensor:
        if self.images.device.type == device.type == "cpu":
            return self.images
        if self._resident.device != torch.empty(0, device=device).device:  # "cuda" is "cuda:0" once allocated
            self._resident = self.images.to(device)
        return self._resident


class TensorSplit:
    """A split held in memory. It is moved to the device once, on first use, and indexed there: no workers, no copies.

    images: (N, C, H, W) uint8 and labels: (N,) int64, both on the CPU.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise DataError(
                f"expected uint8 images (N, C, H, W) and N labels, got {images.dtype} {tuple(images.shape)}"
                f" and labels {tuple(labels.shape)}",
                fix="convert them before making a TensorSplit",
            )
        self.labels = labels.long()
        self._pixels = _Pixels(images)
        self._rows = torch.arange(len(labels))  # which of the shared images are in this split

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "TensorSplit":
        part = object.__new__(TensorSplit)
        part.labels = self.labels[indices]
        part._pixels = self._pixels
        part._rows = self._rows[indices]
        return part

    def batches(self, order: Sequence[Tensor], *, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        if not order:
            return
        images = self._pixels.on(device)
        # One transfer of all indices and labels, not two a batch.
        flat = torch.cat(list(order))
        sizes = [len(indices) for indices in order]
        rows = torch.split(self._rows[flat].to(device), sizes)
        labels = torch.split(self.labels[flat].to(device), sizes)
        for batch_rows, batch_labels in zip(rows, labels, strict=True):
            yield images[batch_rows], batch_labels


class ImageSource(Protocol):
    """Images that are read one at a time. Item i is ((C, H, W) uint8, label); it raises DataError if unreadable."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


class StreamSplit:
    """A split too large for memory: `workers` processes read `source` ahead of the training loop.

    labels: (N,) int64. workers: 0 reads in the training process. The processes start on first use and stay.
    """

    def __init__(self, source: ImageSource, labels: Tensor, *, workers: int) -> None:
        self.labels = labels.long()
        self._source = source
        self._workers = workers
        self._rows = torch.arange(len(labels))
        self._order: list[list[int]] = []  # what the batch sampler of the loader reads, set for each epoch
        self._loader: DataLoader[_Item] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "StreamSplit":
        part = StreamSplit(self._source, self.labels[indices], workers=self._workers)
        part._rows = self._rows[indices]
        return part

    def batches(self, order: Sequence[Tensor], *, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        if not order:
            return
        self._order[:] = [self._rows[indices].tolist() for indices in order]
        if self._loader is None:
            self._loader = self._make_loader(pin_memory=device.type == "cuda")
        for batch in self._loader:
            if isinstance(batch, _Unreadable):
                self._loader = None  # ends the workers now, and not when the traceback is collected
                raise DataError(batch.problem, fix=batch.fix)
            images, labels = batch
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

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


_Item = tuple[Tensor, int] | _Unreadable


class _Guarded(Dataset["_Item"]):
    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def __getitem__(self, index: int) -> "_Item":
        try:
            return self._source[index]
        except DataError as error:
            return _Unreadable(error)


def _collate(items: "list[_Item]") -> tuple[Tensor, Tensor] | _Unreadable:
    images, labels = [], []
    for item in items:
        if isinstance(item, _Unreadable):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels)
