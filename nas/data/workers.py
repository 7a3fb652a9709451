"""Processes that read batches ahead of the training loop.

Not torch's DataLoader, which loses runs in places where this does not:

- A batch travels in an anonymous memory file, not in ``/dev/shm``, of which a container has 64 MB. DataLoader waits
  without an end when that is full.
- The workers ignore the signals that a batch system or a terminal sends to all processes of a run. They leave when the
  training process closes their socket or is gone.
- A worker that is killed is noticed at once, by its socket, and between two steps. DataLoader raises from a signal
  handler, at any place of a step.
- The workers start under joblib, whose processes start others in a way of their own, and in daemonic processes.
- A worker takes three file descriptors of the training process. Workers that nobody reads from are closed where there
  are too few.
"""

import contextlib
import errno
import mmap
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, reduction, util
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.utils.data._utils import worker as torch_worker

from nas.data.inputs import Inputs, each
from nas.errors import ConfigError, DataError, NasError, WorkerLostError
from nas.storage.signals import SIGNALS

AHEAD = 2  # batches that each worker is asked for before they are needed
ALIGNMENT = 64  # bytes: the tensors of a memory file begin at multiples
PATIENCE = 1.0  # seconds that a worker has to leave by itself, which it does unless it hangs in a read
PARENT_CHECK = 5.0  # seconds between looks whether the training process is still there

Batch = tuple[Inputs, Tensor]


class Source(Protocol):
    """Examples that are read one at a time. Item i is (inputs, target), of images ((C, H, W) uint8, label); it raises
    DataError if unreadable."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Inputs, Tensor | int]: ...


def read_batch(source: Source, indices: Sequence[int]) -> Batch:
    """The items at `indices`, stacked: inputs (B, ...) and targets (B, ...)."""
    inputs, targets = zip(*(source[index] for index in indices), strict=True)
    stacked = tuple(torch.stack(tensors) for tensors in zip(*map(each, inputs), strict=True))
    return stacked if isinstance(inputs[0], tuple) else stacked[0], torch.stack(list(map(torch.as_tensor, targets)))


@dataclass
class _Pass:
    """One way through some batches. done: those that have come before they were asked for."""

    done: dict[int, Batch | NasError | str] = field(default_factory=dict)
    abandoned: bool = False


@dataclass
class _Member:
    """A worker as the training process sees it. asked: for which batches, in the order in which they will come."""

    number: int
    socket: connection.Connection
    process: BaseProcess
    asked: deque[tuple[_Pass, int]] = field(default_factory=deque)


def received_descriptor(socket: connection.Connection) -> int:
    try:
        return reduction.recv_handle(socket)
    except RuntimeError as error:  # the system leaves it out where this process may not have one more
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error


class Workers:
    """`count` processes that read batches of `source`. They start with the first batch and stay.

    Several passes can go on at the same time. Raises ConfigError if the processes cannot be started, DataError if an
    item cannot be read, WorkerLostError if a worker is gone, RuntimeError with a worker's traceback for anything else.
    """

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        self._count = count
        self._members: list[_Member] = []
        self._finalizer: Any = None
        self._passes = 0  # that go on

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """The batches of `order`, each a list of indices, one after the other."""
        this, sent, members = _Pass(), 0, None
        self._passes += 1
        try:
            for number in range(len(order)):
                if members is None or members is not self._members:  # or they were closed since the last batch
                    this.done.clear()
                    members, sent = self._members or self._start(), number
                while sent < min(len(order), number + AHEAD * self._count):
                    self._ask(members[sent % self._count], this, sent, order[sent])
                    sent += 1
                while number not in this.done:
                    self._receive(members[number % self._count])
                got = this.done.pop(number)
                if isinstance(got, NasError):
                    self.close()
                    raise got
                if isinstance(got, str):
                    self.close()
                    raise RuntimeError(got)
                yield got
        finally:
            self._passes -= 1
            this.abandoned = True
            this.done.clear()

    def close(self) -> None:
        """End the workers. The next pass starts new ones."""
        if self._finalizer is not None:
            self._finalizer()
        self._members, self._finalizer = [], None

    def _start(self) -> list[_Member]:
        try:
            try:
                return self._started()
            except OSError as error:
                if error.errno not in _DESCRIPTORS:
                    raise
                for other in list(_STARTED):  # of the search, for example, when a network is retrained
                    if not other._passes:
                        other.close()
                return self._started()
        except OSError as error:
            raise ConfigError(
                f"{self._count} data workers cannot be started ({_reason(error)})", fix=_fix(error)
            ) from error

    def _started(self) -> list[_Member]:
        # multiprocessing would leave some open when there are too few.
        _check_free_descriptors(3 * self._count + 4)
        # Not the default context, which joblib sets to its own. Elsewhere than on Linux a fork is not safe.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        members: list[_Member] = []
        _STARTED.add(self)
        # Run by Python's own end of a process before it waits for children, and when nobody holds this object.
        self._members, self._finalizer = members, util.Finalize(self, _end, args=(members,), exitpriority=10)
        try:
            for number in range(self._count):
                ours, theirs = context.Pipe()
                with theirs:
                    arguments = (theirs, self._source, number, self._count, os.getpid())
                    process = context.Process(target=_serve, args=arguments, name=f"nas-data-{number}", daemon=True)
                    members.append(_Member(number, ours, process))
                    with _blocked_signals(), _children_allowed():
                        process.start()
        except OSError:
            self.close()
            raise
        return members

    def _ask(self, member: _Member, this: _Pass, number: int, indices: Sequence[int]) -> None:
        try:
            member.socket.send(list(indices))
        except OSError:  # nobody reads it
            self._lost(member)
        member.asked.append((this, number))

    def _receive(self, member: _Member) -> None:
        """Wait for the next batch of a worker."""
        connection.wait([member.socket, member.process.sentinel])
        try:
            # A worker that has ended may have sent something before that.
            message = member.socket.recv() if member.socket.poll() else self._lost(member)
            if isinstance(message, list):
                message = self._unpacked(message, received_descriptor(member.socket))
        except (EOFError, ConnectionError):
            self._lost(member)
        except OSError as error:
            self.close()
            raise ConfigError(f"a batch cannot be received ({_reason(error)})", fix=_fix(error)) from error
        this, number = member.asked.popleft()
        if not this.abandoned:
            this.done[number] = message

    def _unpacked(self, layout: list[Any], descriptor: int) -> Batch:
        try:
            memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        several, *parts = layout
        content = torch.frombuffer(memory, dtype=torch.uint8)  # which keeps the memory
        *inputs, targets = (
            content[start : start + size].view(dtype).view(shape) if size else torch.empty(shape, dtype=dtype)
            for start, size, dtype, shape in parts
        )
        return tuple(inputs) if several else inputs[0], targets

    def _lost(self, member: _Member) -> NoReturn:
        process = member.process
        process.join(PATIENCE)
        code = process.exitcode
        if code is None:
            how = "does not answer any more"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            how += ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        else:
            how = f"ended with exit code {code}"
        pid = process.pid
        self.close()
        raise WorkerLostError(
            f"data worker {member.number} (process {pid}) {how}",
            fix="see whether memory ran out; fewer data.workers, or a smaller batch, take less",
        )


_STARTED: "weakref.WeakSet[Workers]" = weakref.WeakSet()  # whose sockets a new worker is not to hold open


def _end(members: list[_Member]) -> None:
    """Let workers leave, and kill those that do not. SIGTERM, which they ignore, would not end them."""
    for member in members:
        member.socket.close()
    deadline = time.monotonic() + PATIENCE
    for member in members:
        if member.process.pid is not None:
            member.process.join(max(0.0, deadline - time.monotonic()))
            if member.process.is_alive():
                member.process.kill()
                member.process.join(PATIENCE)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """A process that is started inside has the signals blocked, until it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _children_allowed() -> Iterator[None]:
    """Python refuses children to a daemonic process, such as a worker of a pool, because they could outlive it. These
    do not."""
    settings: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    daemonic = settings.pop("daemon", None)
    try:
        yield
    finally:
        if daemonic is not None:
            settings["daemon"] = daemonic


# -- in a worker


def _serve(socket: connection.Connection, source: Source, number: int, count: int, parent: int) -> None:
    """Read what is asked for until the training process has closed the socket or is gone."""
    for stopping in SIGNALS:
        signal.signal(stopping, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for workers in list(_STARTED):  # after a fork: as long as anybody holds them open, nobody sees them closed
        for member in workers._members:
            member.socket.close()
    torch.set_num_threads(1)
    random.seed(number)
    torch.manual_seed(number)
    # What torch.utils.data.get_worker_info() tells a user's data set, for example to open a file once in each worker.
    torch_worker._worker_info = torch_worker.WorkerInfo(  # type: ignore[attr-defined]
        id=number,
        num_workers=count,
        seed=number,
        dataset=source,  # type: ignore[arg-type]
    )
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            while not socket.poll(PARENT_CHECK):
                if os.getppid() != parent:
                    return
            _answer(socket, source, socket.recv(), number, parent)


def _answer(socket: connection.Connection, source: Source, indices: list[int], number: int, parent: int) -> None:
    descriptor = -1
    message: Any
    try:
        message, descriptor = _packed(read_batch(source, indices))
    except NasError as error:
        message = error
    except (OSError, MemoryError) as error:
        if not isinstance(error, MemoryError) and error.errno not in _SHORTAGES:
            message = _told(number)
        else:
            message = DataError(f"data worker {number} cannot give a batch ({_reason(error)})", fix=_fix(error))
    except Exception:
        message = _told(number)
    try:
        socket.send(message)
        if descriptor >= 0:
            reduction.send_handle(socket, descriptor, parent)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _told(number: int) -> str:
    return f"in data worker {number}:\n{traceback.format_exc()}"


def _packed(batch: Batch) -> tuple[list[Any], int]:
    """What lies where in a memory file, and its descriptor."""
    inputs, targets = batch
    layout: list[Any] = [isinstance(inputs, tuple)]
    with _memory_file() as file:
        for tensor in (*each(inputs), targets):
            start = -(-file.tell() // ALIGNMENT) * ALIGNMENT
            file.seek(start)
            content = tensor.detach().contiguous().view(-1).view(torch.uint8)
            file.write(content.numpy().data)
            layout.append((start, len(content), tensor.dtype, tuple(tensor.shape)))
        if not file.tell():
            file.write(b"\0")  # an empty file cannot be mapped
        file.flush()
        return layout, os.dup(file.fileno())


def _memory_file() -> Any:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("nas-batch", os.MFD_CLOEXEC), "wb")
    return tempfile.TemporaryFile()


# -- what there can be too little of

_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS)
_SHORTAGES = (*_DESCRIPTORS, errno.ENOMEM, errno.ENOSPC, errno.EAGAIN)


def _check_free_descriptors(count: int) -> None:
    """Raises OSError unless this process can open so many files more."""
    opened: list[int] = []
    try:
        opened.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(count))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _reason(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if error.errno in _DESCRIPTORS:
        import resource  # which not every system has

        return f"too few file descriptors: the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
    return error.strerror or str(error)


def _fix(error: OSError | MemoryError) -> str:
    if not isinstance(error, MemoryError) and error.errno in _DESCRIPTORS:
        return "raise the limit, e.g. ulimit -n 1024, or set data.workers=0, which reads in the training process"
    return "set data.workers=0, which reads in the training process, or a smaller batch size"
