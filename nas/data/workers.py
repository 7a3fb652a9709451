"""Worker processes that read batches ahead of the training loop.

Torch's DataLoader loses runs in places where these workers do not:

- A batch travels in an anonymous memory file, not in ``/dev/shm``, which has 64 MB in a container. DataLoader waits for
  ever when ``/dev/shm`` is full.
- The workers ignore the signals that a batch system or a terminal sends to all processes of a run. They end when the
  training process closes their socket or is gone.
- A killed worker is noticed at once, through its socket, and between two steps. DataLoader raises from a signal
  handler, anywhere in a step.
- The workers also start in joblib's processes, which start processes in their own way, and in daemonic processes.
- A worker takes three file descriptors of the training process. If there are too few, workers that nobody reads from
  are closed.
"""

import contextlib
import errno
import multiprocessing
import os
import random
import signal
import sys
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

from nas.data.batch_memory import packed, unpacked
from nas.data.inputs import Batch, Inputs, each
from nas.errors import ConfigError, DataError, NasError, WorkerLostError
from nas.storage.signals import SIGNALS

AHEAD = 2  # batches that each worker is asked for before they are needed
PATIENCE = 1.0  # seconds in which a worker can end by itself; it fails to only if it hangs in a read
PARENT_CHECK = 5.0  # seconds between two checks that the training process still exists


class Source(Protocol):
    """Examples that are read one at a time. Item i is (inputs, target), for images ((C, H, W) uint8, label).

    Reading an item raises DataError if it cannot be read.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Inputs, Tensor | int]: ...


def read_batch(source: Source, indices: Sequence[int]) -> Batch:
    """Returns the items at `indices`, stacked: inputs (B, ...) and targets (B, ...)."""
    inputs, targets = zip(*(source[index] for index in indices), strict=True)
    stacked = tuple(torch.stack(tensors) for tensors in zip(*map(each, inputs), strict=True))
    return stacked if isinstance(inputs[0], tuple) else stacked[0], torch.stack(list(map(torch.as_tensor, targets)))


@dataclass
class _Pass:
    """One iteration over some batches. done: number -> a batch or an error that has arrived but is not used yet."""

    done: dict[int, Batch | NasError | str] = field(default_factory=dict)
    abandoned: bool = False


@dataclass
class _Member:
    """A worker as the training process sees it. asked: the batches it was asked for, in the order of their arrival."""

    number: int
    socket: connection.Connection
    process: BaseProcess
    asked: deque[tuple[_Pass, int]] = field(default_factory=deque)


def received_descriptor(socket: connection.Connection) -> int:
    try:
        return reduction.recv_handle(socket)
    except RuntimeError as error:  # the system drops the descriptor if this process may not open one more
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error


class Workers:
    """`count` processes that read batches of `source`. They start with the first batch and stay.

    Several passes can run at the same time. Raises ConfigError if the processes cannot be started, DataError if an item
    cannot be read, WorkerLostError if a worker is gone, and RuntimeError with the worker's traceback for any other
    error.
    """

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        self._count = count
        self._members: list[_Member] = []
        self._finalizer: Any = None
        self._passes = 0  # that are not finished

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Yields the batches of `order`, each a list of indices, one after the other."""
        current, sent, members = _Pass(), 0, None
        self._passes += 1
        try:
            for number in range(len(order)):
                if members is None or members is not self._members:  # the workers were closed since the last batch
                    current.done.clear()
                    members, sent = self._members or self._start(), number
                while sent < min(len(order), number + AHEAD * self._count):
                    self._ask(members[sent % self._count], current, sent, order[sent])
                    sent += 1
                while number not in current.done:
                    self._receive(members[number % self._count])
                got = current.done.pop(number)
                if isinstance(got, NasError):
                    self.close()
                    raise got
                if isinstance(got, str):
                    self.close()
                    raise RuntimeError(got)
                yield got
        finally:
            self._passes -= 1
            current.abandoned = True
            current.done.clear()

    def close(self) -> None:
        """Ends the workers. The next pass starts new ones."""
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
                for other in list(_STARTED):  # e.g. the workers of the search, when a network is retrained
                    if not other._passes:
                        other.close()
                return self._started()
        except OSError as error:
            raise ConfigError(
                f"{self._count} data workers cannot be started ({_reason(error)})", fix=_fix(error)
            ) from error

    def _started(self) -> list[_Member]:
        # Checked first: if descriptors run out in the middle, multiprocessing leaves some open.
        _check_free_descriptors(3 * self._count + 4)
        # Not the default context, because joblib replaces it by its own. Outside Linux a fork is not safe.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        members: list[_Member] = []
        _STARTED.add(self)
        # Runs when Python ends, before Python waits for child processes, and when nobody holds this object.
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

    def _ask(self, member: _Member, current: _Pass, number: int, indices: Sequence[int]) -> None:
        try:
            member.socket.send(list(indices))
        except OSError:  # the worker does not read any more
            self._lost(member)
        member.asked.append((current, number))

    def _receive(self, member: _Member) -> None:
        """Waits for the next batch of a worker."""
        connection.wait([member.socket, member.process.sentinel])
        try:
            # A worker that has ended may have sent something before that.
            message = member.socket.recv() if member.socket.poll() else self._lost(member)
            if isinstance(message, list):
                message = unpacked(message, received_descriptor(member.socket))
        except (EOFError, ConnectionError):
            self._lost(member)
        except OSError as error:
            self.close()
            raise ConfigError(f"a batch cannot be received ({_reason(error)})", fix=_fix(error)) from error
        current, number = member.asked.popleft()
        if not current.abandoned:
            current.done[number] = message

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
            fix="check whether memory ran out; use fewer data.workers, or a smaller batch",
        )


_STARTED: "weakref.WeakSet[Workers]" = weakref.WeakSet()  # a new worker closes the sockets of all these


def _end(members: list[_Member]) -> None:
    """Lets workers end, and kills those that do not. SIGTERM would not end them, because they ignore it."""
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
    """Blocks the signals for a process that is started inside, until this process ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _children_allowed() -> Iterator[None]:
    """Lets a daemonic process, such as a worker of a pool, start children.

    Python forbids it because the children could outlive the process. These workers do not.
    """
    settings: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    daemonic = settings.pop("daemon", None)
    try:
        yield
    finally:
        if daemonic is not None:
            settings["daemon"] = daemonic


# -- in a worker


def _serve(socket: connection.Connection, source: Source, number: int, count: int, parent: int) -> None:
    """Reads the batches that are asked for, until the training process has closed the socket or is gone."""
    for stopping in SIGNALS:
        signal.signal(stopping, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for workers in list(_STARTED):  # after a fork: a socket looks open as long as any process holds it open
        for member in workers._members:
            member.socket.close()
    torch.set_num_threads(1)
    random.seed(number)
    torch.manual_seed(number)
    # For torch.utils.data.get_worker_info(), which a user's data set may call, e.g. to open a file once per worker.
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
        message, descriptor = packed(read_batch(source, indices))
    except NasError as error:
        message = error
    except (OSError, MemoryError) as error:
        if not isinstance(error, MemoryError) and error.errno not in _SHORTAGES:
            message = _with_traceback(number)
        else:
            message = DataError(f"data worker {number} cannot give a batch ({_reason(error)})", fix=_fix(error))
    except Exception:
        message = _with_traceback(number)
    try:
        socket.send(message)
        if descriptor >= 0:
            reduction.send_handle(socket, descriptor, parent)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _with_traceback(number: int) -> str:
    return f"in data worker {number}:\n{traceback.format_exc()}"


# -- shortages of descriptors and memory

_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS)
_SHORTAGES = (*_DESCRIPTORS, errno.ENOMEM, errno.ENOSPC, errno.EAGAIN)


def _check_free_descriptors(count: int) -> None:
    """Raises OSError if this process cannot open `count` more files."""
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
        import resource  # not every system has it

        return f"too few file descriptors: the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
    return error.strerror or str(error)


def _fix(error: OSError | MemoryError) -> str:
    if not isinstance(error, MemoryError) and error.errno in _DESCRIPTORS:
        return "raise the limit, e.g. ulimit -n 1024, or set data.workers=0, which reads in the training process"
    return "set data.workers=0, which reads in the training process, or a smaller batch size"
