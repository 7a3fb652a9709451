"""Two kinds of splits: in memory, or read by worker processes when needed."""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nas.data.inputs import Batch, Inputs, each, mapped
from nas.data.workers import Source, Workers, read_batch
from nas.errors import DataError

MIB = 2**20


def fits_in_memory(*, images: int, shape: tuple[int, int, int], limit_mb: int) -> bool:
    """Returns whether `images` uint8 images of `shape` (C, H, W) take at most `limit_mb` MiB."""
    channels, height, width = shape
    return images * channels * height * width <= limit_mb * MIB


class _Memory:
    """All inputs of a data set, and one copy on the device that was used last. Subsets share both."""

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
    """A split in memory. It is moved to the device once, on first use, and indexed there: no workers, no copies.

    inputs: (N, ...), for images (N, C, H, W) uint8, or a tuple of such tensors. targets: (N, ...). All are on the CPU.
    Targets are class labels if each is one integer.
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

    def contents(self) -> Iterator[bytes]:
        """Yields the bytes of every example's input, to find copies. A search reads nothing else of a test split."""
        (inputs,) = self._memory.on(torch.device("cpu"))
        yield from (inputs[row].numpy().tobytes() for row in self._rows.tolist())

    def batches(self, order: Sequence[Tensor], *, device: torch.device) -> Iterator[tuple[Inputs, Tensor]]:
        if not order:
            return
        inputs = self._memory.on(device)
        # One transfer for all indices and one for all targets, not two per batch.
        flat = torch.cat(list(order))
        sizes = [len(indices) for indices in order]
        rows = torch.split(self._rows[flat].to(device), sizes)
        targets = torch.split(self._targets[flat].to(device), sizes)
        for batch_rows, batch_targets in zip(rows, targets, strict=True):
            batch = tuple(tensor[batch_rows] for tensor in inputs)
            yield batch if self._several else batch[0], batch_targets


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
        self._reading = Workers(source, workers)

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
        for inputs, targets in self._read([self._rows[indices].tolist() for indices in order]):
            if device.type == "cuda":  # a copy from pinned memory does not wait for the device
                inputs, targets = mapped(Tensor.pin_memory, inputs), targets.pin_memory()
            moved = mapped(lambda tensor: tensor.to(device, non_blocking=True), inputs)
            yield moved, targets.to(device, non_blocking=True)

    def _read(self, order: list[list[int]]) -> Iterator[Batch]:
        if self._workers:
            return self._reading.batches(order)
        return (read_batch(self._source, indices) for indices in order)
