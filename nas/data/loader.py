"""Batches of a split as a pure function of (seed, epoch, batch number).

There is no iterator state: a resumed run needs only the epoch and the step it stopped at.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar

import torch
from torch import Generator, Tensor

from nas.data.bundle import Split
from nas.data.inputs import Batch, mapped
from nas.data.mixing import Mix
from nas.data.spec import DataSpec, Preparation
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError, WorkerLostError
from nas.runtime.distributed import WHOLE, Share

T = TypeVar("T")


@dataclass(eq=False)
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

    split: Split
    _: KW_ONLY
    spec: DataSpec
    batch_size: int
    device: torch.device
    seed: int = 0
    augment: Augment | Preparation | None = None
    mix: Mix | None = None
    shuffle: bool
    drop_last: bool
    what: str
    share: Share = WHOLE

    def __post_init__(self) -> None:
        what = self.what
        self.batch_size = size = int(self.batch_size)  # torch does not split by an integer of NumPy
        if size < 1:
            raise ConfigError(f"{what} must be at least 1, got {size}", fix=f"set {what} to e.g. 64")
        self.share.check(size, what)
        if len(self.split) == 0:
            raise DataError(
                f"the split for {what} has no examples", fix="add examples, or change how the data is split"
            )
        if self.drop_last and size > len(self.split):
            raise DataError(
                f"{what} {size} is larger than the {len(self.split)} examples of its split",
                fix=f"set {what} to at most {len(self.split)}",
            )
        self._prepare = self.spec.preparation(self.augment, self.device)
        # With a user's own function, or with mixing, an example may depend on the others of its batch.
        known = self.augment is None or isinstance(self.augment, Augment)
        self._reads_share = self.share.of > 1 and self.mix is None and known

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def examples(self) -> int:
        """Returns the number of examples in the split."""
        return len(self.split)

    @property
    def left_out(self) -> int:
        """Returns how many examples an epoch does not use, because they do not fill a batch."""
        return len(self.split) % self.batch_size if self.drop_last else 0

    def epoch(
        self, epoch: int, *, start: int = 0, wanted: Callable[[int], bool] = lambda number: True
    ) -> Iterator[Batch]:
        """Yields the batches of one epoch from number `start` on. Earlier batches, and batches whose number is not
        wanted, are not produced.

        A batch is on the device. Inputs are (B, ...), for images (B, C, H, W) float32. Targets are (B, ...), for
        classes int64, or (B, classes) float32 if images are mixed.
        """
        if self.shuffle:
            order = torch.randperm(len(self.split), generator=_generator(self.seed, epoch))
        else:
            order = torch.arange(len(self.split))
        batches = torch.split(order, self.batch_size)
        numbers = [number for number in range(start, len(self)) if wanted(number)]
        vectors = [batches[number] for number in numbers]
        if self._reads_share:
            vectors = list(map(self.share.rows, vectors))
        produced = self.split.batches(vectors, device=self.device)
        for number, (inputs, targets) in zip(numbers, produced, strict=True):
            generator = _generator(self.seed, epoch, number)
            if self._reads_share:
                inputs, targets = mapped(self._among_blanks, inputs), self._among_blanks(targets)
            prepared = self._prepare(inputs, generator)
            if self.mix is not None:
                assert isinstance(prepared, Tensor)  # of images
                prepared, targets = self.mix(prepared, targets, generator)
            yield mapped(self.share.rows, prepared), self.share.rows(targets)

    def _among_blanks(self, share: Tensor) -> Tensor:
        """Returns a whole batch with the share in its place and zeros elsewhere."""
        batch = share.new_zeros(self.share.of * len(share), *share.shape[1:])
        self.share.rows(batch).copy_(share)
        return batch


def search_batches(
    weight_loader: Loader,
    arch_loader: Loader,
    epoch: int,
    start: int = 0,
    *,
    wanted: Callable[[int], bool] = lambda step: True,
) -> Iterator[tuple[Batch, Batch | None]]:
    """Yields pairs (weight batch, architecture batch), one for every weight batch of the epoch from number `start` on.

    wanted: whether a step of the search, counted over all epochs, uses its architecture batch. If not, the batch is
    None and is not loaded. This does not change the batches of the other steps.

    The architecture batches run on through one permutation after another across the epochs. Every architecture example
    is therefore used equally often, whichever loader is longer. The result depends only on the arguments.
    """
    done = epoch * len(weight_loader) + start
    arch_batches = _endless(arch_loader, done, wanted)

    def pairs() -> Iterator[tuple[Batch, Batch | None]]:
        for step, weight_batch in enumerate(weight_loader.epoch(epoch, start=start), done):
            yield weight_batch, next(arch_batches) if wanted(step) else None

    yield from between_steps(pairs())


def between_steps(batches: Iterable[T]) -> Iterator[T]:
    """Yields the batches of a training loop. Marks a WorkerLostError as raised between two steps."""
    try:
        yield from batches
    except WorkerLostError as error:
        error.between_steps = True
        raise


def _endless(loader: Loader, position: int, wanted: Callable[[int], bool]) -> Iterator[Batch]:
    """The wanted batches from a position on, counted over all epochs of the loader."""
    epoch, start = divmod(position, len(loader))
    while True:
        first = epoch * len(loader)
        yield from loader.epoch(epoch, start=start, wanted=lambda number, first=first: wanted(first + number))  # type: ignore[misc]
        epoch, start = epoch + 1, 0


def _generator(*key: int) -> Generator:
    # A hash, because sums of numbers collide: seed + epoch is the same for (1, 2) and (2, 1).
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
