"""Several processes, as torchrun starts them, that train one network together, each on its share of every batch.

All of them hold the same weights and logits and, as their generators have the same seed, draw the same gates; what
they exchange is gradients. That is not left to DistributedDataParallel, which expects one for every weight: operations
that are not drawn have none in any process, and are to keep none. The layers of each process draw random numbers of
their own, see `nas.runtime.rng`.

In a single process nothing here does anything.
"""

import datetime
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from nas.errors import ConfigError, DivergenceError

PATIENCE = datetime.timedelta(hours=1)  # that the others are waited for: one may still be reading its data
BUCKET = 2**23  # numbers that travel together: few messages, and little memory beside the gradients


@dataclass(frozen=True)
class Share:
    """One of `of` equal parts of a batch, counted from 0: consecutive examples."""

    index: int = 0
    of: int = 1

    def rows(self, batch: Tensor) -> Tensor:
        """The share of a whole batch, (B, ...); returns a view, (B / of, ...)."""
        size = len(batch) // self.of
        return batch[self.index * size : (self.index + 1) * size]

    def check(self, batch_size: int, what: str) -> None:
        """Raises ConfigError unless batches can be shared equally. what: the setting that gives their size."""
        if batch_size % self.of:
            raise ConfigError(
                f"{what} is {batch_size}, which {self.of} processes cannot share equally",
                fix=f"set {what} to a multiple of {self.of}, e.g. {-(-batch_size // self.of) * self.of}",
            )


WHOLE = Share()  # of a batch that is not shared


@contextmanager
def joined() -> Iterator[None]:
    """Inside, this process works together with the others that torchrun has started: gloo carries what is on CPUs,
    NCCL what is on GPUs."""
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    # Processes that torchrun has started anew may meet in the store of those before them, whose addresses are still in
    # it.
    attempt = dist.distributed_c10d.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield
    except BaseException:
        if not gpus:  # NCCL would wait for the others, of which the one that failed knows nothing
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share() -> Share:
    """That of this process."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else WHOLE


def first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return share().index == 0


def number_on_machine() -> int:
    """Of this process, from 0: its GPU has the same."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def first_to(act: str) -> bool:
    """Whether no process has asked this of the same act before. Waits for none, so that errors can be told by it."""
    return not dist.is_initialized() or dist.distributed_c10d._get_default_store().add(f"nas/{act}", 1) == 1


def agreed(text: str) -> str:
    """What the first process passes."""
    texts = [text]
    if world() > 1:
        dist.broadcast_object_list(texts, src=0, device=torch.device("cpu"))
    return texts[0]


@contextmanager
def first_on_machine_first() -> Iterator[None]:
    """The first process of each machine goes through the block before the others on it do, e.g. to download what all
    of them will read."""
    follows = number_on_machine() > 0
    if follows:
        averaged([0.0])  # each waits here for all others
    yield
    if not follows:
        averaged([0.0])


@torch.no_grad()
def start_alike(model: nn.Module) -> None:
    """Give every process the weights and buffers of the first: a model may start from numbers that no seed decides."""
    if world() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            flat = tensor.flatten().clone()
            dist.broadcast(flat, src=0)
            tensor.copy_(flat.view_as(tensor))


def means(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The mean of each tensor over the processes, all of which pass tensors of the same shapes; in each the same to
    the last bit. The tensors themselves are left alone, and returned where there is one process."""
    tensors = list(tensors)
    if world() == 1:
        return tensors
    found = dict(reduced(tensors))
    return [found[position] for position in range(len(tensors))]


def average(gradients: Sequence[Tensor]) -> None:
    """Replace gradients by their means over the processes: of equal shares, that is the gradient of the whole batch.

    Every process has to pass those of the same parameters: see `complete`.
    """
    if world() > 1:
        for position, mean in reduced(gradients):
            gradients[position].copy_(mean)


def missing_somewhere(there: Sequence[bool]) -> list[bool]:
    """Which things some processes have and this one has not. there: whether this process has each of them, in the same
    order in all. All processes call it together. The message travels between CPUs, so no device is waited for."""
    if world() == 1 or not there:
        return [False] * len(there)
    anywhere = torch.tensor(there, dtype=torch.uint8)
    dist.all_reduce(anywhere, dist.ReduceOp.MAX)
    return [bool(any_has) and not has for any_has, has in zip(anywhere.tolist(), there, strict=True)]


def complete(parameters: Sequence[Tensor]) -> None:
    """Give a gradient of zeros to every parameter that has one in another process and none in this one.

    Such is a parameter in a branch that only some shares of a batch took. A parameter without a gradient in all
    processes keeps None. parameters: the same in all processes, which call it together.
    """
    missing = missing_somewhere([parameter.grad is not None for parameter in parameters])
    for parameter, lacks in zip(parameters, missing, strict=True):
        if lacks:
            parameter.grad = torch.zeros_like(parameter)


@torch.no_grad()
def reduced(tensors: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Position and mean of each tensor, bucket after bucket."""
    for bucket in buckets(tensors):
        flat = torch.cat([tensors[position].flatten() for position in bucket])
        dist.all_reduce(flat)
        flat /= world()
        parts = flat.split([tensors[position].numel() for position in bucket])
        for position, part in zip(bucket, parts, strict=True):
            yield position, part.view(tensors[position].shape)


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Positions of tensors that can travel as one: of one device and type, BUCKET numbers at most unless one alone
    has more."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for position, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(position)
    for positions in kinds.values():
        bucket: list[int] = []
        size = 0
        for position in positions:
            if bucket and size + tensors[position].numel() > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(position)
            size += tensors[position].numel()
        yield bucket


def averaged(numbers: Sequence[float]) -> list[float]:
    """The mean of each number over the processes; returns when all of them have called it."""
    if world() == 1:
        return list(numbers)
    mean: list[float] = means([torch.tensor(numbers, dtype=torch.float64)])[0].tolist()
    return mean


def highest(numbers: Sequence[int]) -> list[int]:
    """The largest of each number that a process passes; returns when all of them have called it."""
    if world() == 1:
        return list(numbers)
    largest = torch.tensor([int(number) for number in numbers])
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    found: list[int] = largest.tolist()
    return found


def of_all(mine: Any) -> list[Any]:
    """What each process passes, by the number of the process. Plain values and tensors on the CPU only."""
    if world() == 1:
        return [mine]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, mine)
    return found


def check_equal_gates(tensors: Iterable[Tensor]) -> None:
    """Raises DivergenceError, in every process, unless the tensors that decide the gates, logits and states of
    generators, are the same in all of them, bit for bit."""
    if world() == 1:
        return
    digest = hashlib.blake2b(digest_size=7)  # so that it fits into an int64 with its sign
    for tensor in tensors:
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    number = int.from_bytes(digest.digest())
    if sum(highest([number, -number])) != 0:
        raise DivergenceError(
            f"the {world()} processes no longer draw the same gates, expected equal logits and generators in all",
            fix="run them on GPUs of one kind, and let nothing in the model or the data depend on the process",
        )


def check_equal_weights(weights: Mapping[str, Tensor]) -> None:
    """Raises DivergenceError, in every process, unless each weight is the same in all of them, bit for bit.

    weights: by name, the same names in all processes, e.g. of `named_parameters`.
    """
    if world() == 1 or not weights:
        return
    digests = digest_each(list(weights.values()))
    opposites = torch.cat([digests, -digests])
    dist.all_reduce(opposites, dist.ReduceOp.MAX)
    differ = (opposites[: len(digests)] != -opposites[len(digests) :]).nonzero().flatten().tolist()
    if differ:
        raise DivergenceError(
            f"{len(differ)} of {len(digests)} weights are no longer the same in the {world()} processes, the first is "
            f"{list(weights)[differ[0]]}, expected equal weights in all",
            fix="run them on GPUs of one kind, and let no forward pass write into a weight",
        )


@torch.no_grad()
def digest_each(tensors: Sequence[Tensor]) -> Tensor:
    """(n,) int64 on the CPU, each between -2^62 and 2^62: a number for each of n tensors that another bit changes.

    It is computed where the tensor is, so that eight bytes of each tensor travel. Sums of integers wrap around, and
    are the same in any order.
    """
    found = []
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[real.element_size()]
        bits = real.detach().contiguous().flatten().view(kind)
        digest = torch.zeros((), dtype=torch.int64, device=bits.device)
        for start in range(0, len(bits), BUCKET):  # as each number takes eight bytes here
            some = bits[start : start + BUCKET].long()
            # Odd factors lose no bit, and different ones tell numbers that have changed places.
            places = torch.arange(start, start + len(some), device=bits.device)
            digest += (some * ((2 * places + 1) * 0x1E3779B97F4A7C15)).sum()
        found.append(digest >> 1)
    return torch.stack([digest.to(found[0].device) for digest in found]).cpu()
