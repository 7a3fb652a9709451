"""Batches of a split as a pure function of (seed, epoch, batch number).

There is no iterator state: a resumed run needs only the epoch and the step it stopped at.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from nas.data.bundle import DataSpec, Split
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError

Batch = tuple[Tensor, Tensor]


class Loader:
    """Normalised, augmented batches of one split.

    augment: None only normalises.  shuffle: a fresh permutation every epoch.  drop_last: leave out the rest that does
    not fill a batch.  what: the setting that gives the batch size, for messages, e.g. ``search.batch_size``.
    Two loaders with one seed and equally large splits draw equal permutations: give each loader of a run its own seed.
    Raises ConfigError if batch_size < 1, DataError if the split is empty or has no full batch to give.
    """

    def __init__(
        self,
        split: Split,
        *,
        spec: DataSpec,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
        augment: Augment | None = None,
        shuffle: bool,
        drop_last: bool,
        what: str,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"{what} must be at least 1, got {batch_size}", fix=f"set {what} to e.g. 64")
        if len(split) == 0:
            raise DataError(f"the split for {what} has no images", fix="add images, or change how the data is split")
        if drop_last and batch_size > len(split):
            raise DataError(
                f"{what} {batch_size} is larger than the {len(split)} images of its split",
                fix=f"set {what} to at most {len(split)}",
            )
        self._split = split
        self._batch_size = batch_size
        self._device = device
        self._seed = seed
        self._augment = augment or Augment()
        self._shuffle = shuffle
        self._drop_last = drop_last
        # Here, once: made for each batch, these small tensors would stall the GPU twice a step.
        self._mean = torch.tensor(spec.mean, device=device)
        self._std = torch.tensor(spec.std, device=device)

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(len(self._split), self._batch_size)
        return full + (rest > 0 and not self._drop_last)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on; those before it are not produced.

        Yields images (B, C, H, W) float32 and labels (B,) int64, on the device.
        """
        if self._shuffle:
            order = torch.randperm(len(self._split), generator=_generator(self._seed, epoch))
        else:
            order = torch.arange(len(self._split))
        vectors = torch.split(order, self._batch_size)[start : len(self)]
        for number, (images, labels) in enumerate(self._split.batches(vectors, device=self._device), start):
            generator = _generator(self._seed, epoch, number)
            yield self._augment(images, mean=self._mean, std=self._std, generator=generator), labels


def search_batches(
    weight_loader: Loader, arch_loader: Loader, epoch: int, start: int = 0
) -> Iterator[tuple[Batch, Batch]]:
    """Pairs (weight batch, architecture batch), one for every weight batch of the epoch from number `start` on.

    The architecture batches run on through permutation after permutation across the epochs, so every architecture
    image is used equally often whichever of the two loaders is longer. A pure function of its arguments.
    """
    done = epoch * len(weight_loader) + start
    arch_batches = _endless(arch_loader, done)
    yield from zip(weight_loader.epoch(epoch, start=start), arch_batches, strict=False)


def _endless(loader: Loader, position: int) -> Iterator[Batch]:
    epoch, start = divmod(position, len(loader))
    while True:
        yield from loader.epoch(epoch, start=start)
        epoch, start = epoch + 1, 0


def _generator(*key: int) -> Generator:
    # A hash, because seeds built by arithmetic collide: seed + epoch is the same for (1, 2) and (2, 1).
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
