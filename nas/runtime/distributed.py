"""Trains one network in several processes, which torchrun starts. Each process has its share of every batch.

All processes hold the same weights and logits. They draw the same gates, as their generators have the same seed. The
processes exchange gradients. DistributedDataParallel does not fit, because it expects a gradient for every weight:
operations that are not drawn have no gradient in any process, and must keep none. The layers of each process draw
their own random numbers, see `nas.runtime.rng`.

In a single process the functions of this module do nothing.
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

PATIENCE = datetime.timedelta(hours=1)  # the longest wait for other processes, which may still be reading their data
BUCKET = 2**23  # numbers in one message: few messages, and little memory beside the gradients


@dataclass(frozen=True)
class Share:
    """One of `of` equal parts of a batch. A part has consecutive examples; `index` counts from 0."""

    index: int = 0
    of: int = 1

    def rows(self, batch: Tensor) -> Tensor:
        """The share of a whole batch, (B, ...); returns a view, (B / of, ...)."""
        size = len(batch) // self.of
        return batch[self.index * size : (self.index + 1) * size]

    def check(self, batch_size: int, what: str) -> None:
        """Raises ConfigError unless batches can be shared equally. what: the setting of the batch size."""
        if batch_size % self.of:
            raise ConfigError(
                f"{what} is {batch_size}, which {self.of} processes cannot share equally",
                fix=f"set {what} to a multiple of {self.of}, e.g. {-(-batch_size // self.of) * self.of}",
            )


WHOLE = Share()  # the whole batch, in a single process


@contextmanager
def joined() -> Iterator[None]:
    """Joins the group of processes that torchrun started. Messages use gloo on CPUs and NCCL on GPUs."""
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    # Processes that torchrun restarts may meet in the store of the previous attempt, which still holds its addresses.
    attempt = dist.distributed_c10d.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield
    except BaseException:
        if not gpus:  # NCCL would wait for the other processes, which may not have failed
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share() -> Share:
    """The share of this process."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else WHOLE


def first() -> bool:
    """Whether this is the first process, which alone writes files and prints."""
    return share().index == 0


def number_on_machine() -> int:
    """The number of this process on its machine, from 0. Its GPU has the same number."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def first_to(act: str) -> bool:
    """Whether this process is the first to ask for `act`. Does not wait, so that a failing process can print once."""
    return not dist.is_initialized() or dist.distributed_c10d._get_default_store().add(f"nas/{act}", 1) == 1


def agreed(text: str) -> str:
    """Returns the text of the first process in all processes."""
    texts = [text]
    if world() > 1:
        dist.broadcast_object_list(texts, src=0, device=torch.device("cpu"))
    return texts[0]


@contextmanager
def first_on_machine_first() -> Iterator[None]:
    """Lets the first process of each machine run the block before the other processes of the machine do.

    Used, for example, to download files that all processes read.
    """
    follows = number_on_machine() > 0
    if follows:
        averaged([0.0])  # waits until all processes have called it
    yield
    if not follows:
        averaged([0.0])


@torch.no_grad()
def start_alike(model: nn.Module) -> None:
    """Copies the weights and buffers of the first process to all others, as a seed may not decide every number."""
    if world() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            flat = tensor.flatten().clone()
            dist.broadcast(flat.view(torch.uint8), src=0)  # as bytes: gloo does not know all types
            tensor.copy_(flat.view_as(tensor))


def means(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The mean of each tensor over the processes, the same in all processes to the last bit.

    All processes pass tensors of the same shapes. The tensors stay unchanged; a single process gets them back.
    """
    tensors = list(tensors)
    if world() == 1:
        return tensors
    found = dict(reduced(tensors))
    return [found[position] for position in range(len(tensors))]


def average(gradients: Sequence[Tensor]) -> None:
    """Replaces gradients by their means over the processes: with equal shares, the gradient of the whole batch.

    All processes must pass the gradients of the same parameters: see `complete`.
    """
    if world() > 1:
        for position, mean in reduced(gradients):
            gradients[position].copy_(mean)


def missing_somewhere(there: Sequence[bool]) -> list[bool]:
    """Whether each thing is missing in this process but not in another.

    there: whether this process has each thing, in the same order in all processes. All processes call it together. The
    message travels between CPUs, so that no process waits for its device.
    """
    if world() == 1 or not there:
        return [False] * len(there)
    anywhere = torch.tensor(there, dtype=torch.uint8)
    dist.all_reduce(anywhere, dist.ReduceOp.MAX)
    return [bool(any_has) and not has for any_has, has in zip(anywhere.tolist(), there, strict=True)]


def complete(parameters: Sequence[Tensor]) -> None:
    """Gives a gradient of zeros to every parameter that has a gradient in another process and none in this process.

    This happens to parameters in a branch that only some shares of a batch took. A parameter without a gradient in any
    process keeps None. parameters: the same in all processes, which call it together.
    """
    if world() == 1:
        return
    missing = missing_somewhere([parameter.grad is not None for parameter in parameters])
    for parameter, lacks in zip(parameters, missing, strict=True):
        if lacks:
            parameter.grad = torch.zeros_like(parameter)


@torch.no_grad()
def reduced(tensors: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yields the position and the mean of each tensor, bucket after bucket."""
    for bucket in buckets(tensors):
        flat = torch.cat([tensors[position].flatten() for position in bucket])
        dist.all_reduce(flat)
        flat /= world()
        parts = flat.split([tensors[position].numel() for position in bucket])
        for position, part in zip(bucket, parts, strict=True):
            yield position, part.view(tensors[position].shape)


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yields the positions of tensors that travel in one message, which have the same device and dtype.

    They have at most BUCKET numbers, unless a single tensor has more.
    """
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
    """The mean of each number over the processes. Returns when all processes have called it."""
    if world() == 1:
        return list(numbers)
    mean: list[float] = means([torch.tensor(numbers, dtype=torch.float64)])[0].tolist()
    return mean


def highest(numbers: Sequence[int]) -> list[int]:
    """The maximum of each number over the processes. Returns when all processes have called it."""
    if world() == 1:
        return list(numbers)
    largest = torch.tensor([int(number) for number in numbers])
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    found: list[int] = largest.tolist()
    return found


def of_all(mine: Any) -> list[Any]:
    """The values of all processes, in the order of the processes. Plain values and tensors on the CPU only."""
    if world() == 1:
        return [mine]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, mine)
    return found


def of_this_process(states: Sequence[Any]) -> Any:
    """Returns the state of this process from the states that `of_all` has collected.

    If fewer processes had given theirs, returns the state of the first one.
    """
    number = share().index
    return states[number if number < len(states) else 0]


def check_same(values: Mapping[str, Any]) -> None:
    """Raises ConfigError, in every process, for a value that is not the same in all processes. Otherwise they would
    wait for each other without end, or compute nonsense.

    values: name -> plain data, with the same names in all processes.
    """
    each = of_all({name: repr(value) for name, value in values.items()})
    for name in values:
        found = list(dict.fromkeys(of[name] for of in each))
        if len(found) > 1:
            raise ConfigError(
                f"the {len(each)} processes differ in {name}, got {' and '.join(one[:60] for one in found[:2])}, "
                "expected the same in all",
                fix="start all processes with the same settings, data and files, on devices of one kind",
            )


def check_equal_gates(tensors: Iterable[Tensor]) -> None:
    """Raises DivergenceError, in every process, unless the tensors are the same in all processes, bit for bit.

    tensors: the logits and the generator states, which decide the gates.
    """
    if world() == 1:
        return
    digest = hashlib.blake2b(digest_size=7)  # 7 bytes fit into an int64, also with a minus sign
    for tensor in tensors:
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    number = int.from_bytes(digest.digest())
    if sum(highest([number, -number])) != 0:
        raise DivergenceError(
            f"the {world()} processes no longer draw the same gates, expected equal logits and generators in all",
            fix="use GPUs of one kind, and let nothing in the model or the data depend on the process",
        )


def check_equal_weights(weights: Mapping[str, Tensor]) -> None:
    """Raises DivergenceError, in every process, unless each weight is the same in all processes, bit for bit.

    weights: name -> weight, e.g. from `named_parameters`, with the same names in all processes.
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
            fix="use GPUs of one kind, and let no forward pass write into a weight",
        )


@torch.no_grad()
def digest_each(tensors: Sequence[Tensor]) -> Tensor:
    """(n,) int64 on the CPU: a digest of each of n tensors, between -2^62 and 2^62. Any changed bit changes the digest.

    The digest is computed on the tensor's device, so that only eight bytes per tensor are transferred. Sums of integers
    wrap around, and do not depend on the order.
    """
    found = []
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[real.element_size()]
        bits = real.detach().contiguous().flatten().view(kind)
        digest = torch.zeros((), dtype=torch.int64, device=bits.device)
        for start in range(0, len(bits), BUCKET):  # in pieces, as each number takes eight bytes here
            some = bits[start : start + BUCKET].long()
            # Odd factors lose no bit. Different factors make the digest depend on the order of the numbers.
            places = torch.arange(start, start + len(some), device=bits.device)
            digest += (some * ((2 * places + 1) * 0x1E3779B97F4A7C15)).sum()
        found.append(digest >> 1)
    return torch.stack([digest.to(found[0].device) for digest in found]).cpu()
