"""Batches of a split as a pure function of (seed, epoch, batch number).

There is no iterator state: a resumed run needs only the epoch and the step it stopped at.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Generator, Tensor

from nas.data.bundle import Split
from nas.data.inputs import Inputs, mapped
from nas.data.mixing import Mix
from nas.data.spec import DataSpec, Preparation
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError, WorkerLostError
from nas.runtime.distributed import WHOLE, Share

Batch = tuple[Inputs, Tensor]
T = TypeVar("T")


class Loader:
    """Batches of one split as the network gets them: prepared, and for images normalised and augmented.

    spec: prepares the inputs.
    augment: None for no augmentation.
    mix: makes mixed images and class probabilities from images and labels; None for no mixing.
    shuffle: draw a new permutation every epoch.
    drop_last: leave out the last batch if it is not full.
    what: the setting that gives the batch size, for messages, e.g. ``search.batch_size``.
    share: the part of every batch that this process gets. The part is the same as in a run of one process, because
    random numbers are drawn for whole batches. Only the share is read, unless images are mixed or `augment` is a user's
    function. A share needs drop_last.

    Two loaders with one seed and equally large splits draw equal permutations: give each loader of a run its own seed.
    Raises ConfigError if batch_size < 1 or cannot be shared, DataError if the split is empty or has no full batch.
    """

    def __init__(
        self,
        split: Split,
        *,
        spec: DataSpec,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
        augment: Augment | Preparation | None = None,
        mix: Mix | None = None,
        shuffle: bool,
        drop_last: bool,
        what: str,
        share: Share = WHOLE,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"{what} must be at least 1, got {batch_size}", fix=f"set {what} to e.g. 64")
        share.check(batch_size, what)
        if len(split) == 0:
            raise DataError(
                f"the split for {what} has no examples", fix="add examples, or change how the data is split"
            )
        if drop_last and batch_size > len(split):
            raise DataError(
                f"{what} {batch_size} is larger than the {len(split)} examples of its split",
                fix=f"set {what} to at most {len(split)}",
            )
        self._split = split
        self._batch_size = batch_size
        self._device = device
        self._seed = seed
        self._prepare = spec.preparation(augment, device)
        self._mix = mix
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._share = share
        # With a user's own function, or with mixing, an example may depend on the others of its batch.
        self._reads_share = share.of > 1 and mix is None and (augment is None or isinstance(augment, Augment))

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        full, rest = divmod(len(self._split), self._batch_size)
        return full + (rest > 0 and not self._drop_last)

    @property
    def examples(self) -> int:
        """Returns the number of examples in the split."""
        return len(self._split)

    @property
    def left_out(self) -> int:
        """Returns how many examples an epoch does not use, because they do not fill a batch."""
        return len(self._split) % self._batch_size if self._drop_last else 0

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch from number `start` on. Earlier batches are not produced.

        A batch is on the device. Inputs are (B, ...), for images (B, C, H, W) float32. Targets are (B, ...), for
        classes int64, or (B, classes) float32 if images are mixed.
        """
        if self._shuffle:
            order = torch.randperm(len(self._split), generator=_generator(self._seed, epoch))
        else:
            order = torch.arange(len(self._split))
        vectors = torch.split(order, self._batch_size)[start : len(self)]
        if self._reads_share:
            vectors = tuple(map(self._share.rows, vectors))
        for number, (inputs, targets) in enumerate(self._split.batches(vectors, device=self._device), start):
            generator = _generator(self._seed, epoch, number)
            if self._reads_share:
                inputs, targets = mapped(self._among_blanks, inputs), self._among_blanks(targets)
            prepared = self._prepare(inputs, generator)
            if self._mix is not None:
                assert isinstance(prepared, Tensor)  # of images
                prepared, targets = self._mix(prepared, targets, generator)
            yield mapped(self._share.rows, prepared), self._share.rows(targets)

    def _among_blanks(self, share: Tensor) -> Tensor:
        """Returns a whole batch with the share in its place and zeros elsewhere."""
        batch = share.new_zeros(self._share.of * len(share), *share.shape[1:])
        self._share.rows(batch).copy_(share)
        return batch


def search_batches(
    weight_loader: Loader, arch_loader: Loader, epoch: int, start: int = 0
) -> Iterator[tuple[Batch, Batch]]:
    """Yields pairs (weight batch, architecture batch), one for every weight batch of the epoch from number `start` on.

    The architecture batches run on through one permutation after another across the epochs. Every architecture example
    is therefore used equally often, whichever loader is longer. The result depends only on the arguments.
    """
    done = epoch * len(weight_loader) + start
    arch_batches = _endless(arch_loader, done)
    yield from between_steps(zip(weight_loader.epoch(epoch, start=start), arch_batches, strict=False))


def between_steps(batches: Iterable[T]) -> Iterator[T]:
    """Yields the batches of a training loop. Marks a WorkerLostError as raised between two steps."""
    try:
        yield from batches
    except WorkerLostError as error:
        error.between_steps = True
        raise


def _endless(loader: Loader, position: int) -> Iterator[Batch]:
    epoch, start = divmod(position, len(loader))
    while True:
        yield from loader.epoch(epoch, start=start)
        epoch, start = epoch + 1, 0


def _generator(*key: int) -> Generator:
    # A hash, because sums of numbers collide: seed + epoch is the same for (1, 2) and (2, 1).
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
