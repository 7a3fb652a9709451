"""Worker processes that read data: what ends them, what they survive, and the message when a worker is lost."""

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from nas.data import workers as module
from nas.data.workers import Source, Workers
from nas.errors import ConfigError, DataError, WorkerLostError
from nas.storage.signals import SIGNALS


class Numbers:
    """Item i is ([i, i, i], i)."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3,), index), index


class Does(Numbers):
    """Does something of a test's before it reads item 5."""

    def __init__(self, what: Callable[[], Any]) -> None:
        self.what = what

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 5:
            self.what()
        return super().__getitem__(index)


def read(source: Source, *, count: int = 2, order: Any = tuple([k] for k in range(10))) -> list[int]:
    workers = Workers(source, count)
    try:
        return [int(targets[0]) for _, targets in workers.batches(order)]
    finally:
        workers.close()


def pids(workers: Workers) -> list[int]:
    return [member.process.pid or 0 for member in workers._members]


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_outlive_signals_to_the_whole_group(number: signal.Signals) -> None:
    workers = Workers(Numbers(), 2)
    batches = workers.batches([[k] for k in range(40)])
    next(batches)
    for pid in pids(workers):
        os.kill(pid, number)
    assert [int(targets[0]) for _, targets in batches] == list(range(1, 40))
    workers.close()


def test_a_worker_is_started_with_signals_blocked_so_that_none_can_end_it_before_it_ignores_them() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with module._blocked_signals():
        assert set(SIGNALS) <= signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.parametrize(
    ("what", "how"),
    [
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            "was killed by SIGKILL, as the system does when memory runs out",
        ),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was killed by SIGSEGV"),
        (lambda: os._exit(3), "ended with exit code 3"),
    ],
)
def test_a_lost_worker_is_named(what: Callable[[], Any], how: str) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerLostError, match=rf"^data worker 1 \(process \d+\) {how}; check whether memory ran out"):
        read(Does(what))
    assert time.monotonic() - began < 20


def test_a_worker_that_is_killed_while_it_waits_is_noticed() -> None:
    workers = Workers(Numbers(), 1)
    batches = workers.batches([[k] for k in range(40)])
    next(batches)
    os.kill(pids(workers)[0], signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="data worker 0"):
        list(batches)
    assert [int(targets[0]) for _, targets in workers.batches([[7]])] == [7]  # new ones start
    workers.close()


def test_workers_leave_when_nobody_holds_them() -> None:
    workers = Workers(Numbers(), 2)
    next(workers.batches([[1], [2]]))
    processes = [member.process for member in workers._members]
    del workers
    gc.collect()
    assert [process.exitcode for process in processes] == [0, 0]


def test_one_that_hangs_in_a_read_is_killed_when_it_is_to_leave() -> None:
    workers = Workers(Does(lambda: time.sleep(60)), 1)
    next(workers.batches([[1], [5]]))
    process = workers._members[0].process
    began = time.monotonic()
    workers.close()
    assert time.monotonic() - began < 20
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_workers_leave_when_the_training_process_is_killed() -> None:
    """The last line that they share an end with: it closes when all of them are gone."""
    code = (
        "import os, signal; from data.test_workers import *; w = Workers(Numbers(), 3);"
        "next(w.batches([[k] for k in range(20)])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, timeout=100, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_passes_go_on_side_by_side_and_may_be_abandoned() -> None:
    workers = Workers(Numbers(), 2)
    one, two = (workers.batches([[k] for k in range(start, start + 5)]) for start in (0, 50))
    pairs = [(int(a[1][0]), int(b[1][0])) for a, b in zip(one, two, strict=True)]
    assert pairs == [(k, 50 + k) for k in range(5)]
    next(workers.batches([[k] for k in range(9)]))
    assert [int(targets[0]) for _, targets in workers.batches([[8], [9]])] == [8, 9]
    workers.close()


def test_a_pass_goes_on_when_an_error_of_another_has_ended_the_workers() -> None:
    def refuse() -> None:
        raise DataError("no", fix="yes")

    workers = Workers(Does(refuse), 2)
    goes_on = workers.batches([[k] for k in range(10, 20)])
    next(goes_on)
    with pytest.raises(DataError, match="no; yes"):
        list(workers.batches([[5], [6]]))
    assert [int(targets[0]) for _, targets in goes_on] == list(range(11, 20))
    workers.close()


def test_any_other_error_comes_with_the_traceback_of_the_worker() -> None:
    with pytest.raises(RuntimeError, match=r"in data worker 1:\n(.*\n)*ZeroDivisionError: division by zero"):
        read(Does(lambda: 1 / 0))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).view(2, 3).t(),
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(0, 4),
        torch.tensor(2.5),
        torch.ones(3, requires_grad=True),
    ],
    ids=str,
)
def test_tensors_of_all_kinds_come_as_they_are(tensor: Tensor) -> None:
    class Source:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
            return (torch.tensor([index], dtype=torch.uint8), tensor), tensor

    workers = Workers(Source(), 1)
    ((first, second), targets) = next(workers.batches([[0, 1]]))
    assert first.tolist() == [[0], [1]]
    for got in (second, targets):
        assert got.dtype == tensor.dtype
        assert torch.equal(got, torch.stack([tensor, tensor]))
        got.detach().zero_()  # and can be written
    workers.close()


def test_nothing_is_put_into_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which a container has 64 MB: a batch goes through an anonymous file."""
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", lambda *_: os._exit(9), raising=False)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", lambda *_: os._exit(9), raising=False)
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    workers = Workers(Numbers(), 2)
    next(workers.batches([[k] for k in range(9)]))
    if before or os.path.isdir("/dev/shm"):
        mine = {name for name in set(os.listdir("/dev/shm")) - before if f"_{os.getpid()}_" in name}
        assert not mine
    workers.close()


def test_a_data_set_is_told_in_which_worker_it_is() -> None:
    class Told(Numbers):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            info = get_worker_info()
            assert info is not None
            return torch.zeros(1), info.id * 10 + info.num_workers

    assert read(Told(), order=[[0], [0], [0]]) == [2, 12, 2]


def _stream_in_a_daemon(pipe: Any) -> None:
    pipe.send(read(Numbers()))


def test_a_daemonic_process_can_stream() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_stream_in_a_daemon, args=(theirs,), daemon=True)
    process.start()
    assert ours.poll(30)
    assert ours.recv() == list(range(10))
    process.join(10)
    assert process.exitcode == 0


@contextlib.contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """Inside, this process may open so many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    holes = [os.open(os.devnull, os.O_RDONLY)]
    while len(os.listdir("/proc/self/fd")) - 1 <= holes[-1]:  # until there is no gap below
        holes.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (holes[-1] + 1 + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for hole in holes:
            os.close(hole)


@pytest.mark.parametrize("spare", [0, 3])
def test_too_few_file_descriptors_are_named(spare: int) -> None:
    with (
        few_descriptors(spare),
        pytest.raises(ConfigError, match=r"too few file descriptors: the limit is \d+\); raise the limit, e.g. ulim"),
    ):
        read(Numbers())
    assert read(Numbers()) == list(range(10))


def test_a_worker_takes_three_descriptors() -> None:
    before = len(os.listdir("/proc/self/fd"))
    workers = Workers(Numbers(), 4)
    batches = workers.batches([[k] for k in range(30)])
    next(batches)
    assert len(os.listdir("/proc/self/fd")) - before <= 3 * 4 + 1  # and one of the last batch
    workers.close()


@pytest.mark.long  # the files that a start needs depend on what ran in this process before
def test_workers_that_nobody_reads_from_make_room() -> None:
    read(Numbers())  # the first worker of a process opens files that stay open
    gc.collect()  # closes the files of workers that other tests have left
    # Room for all but the last. How many files a start takes for a moment depends on what ran in this process before.
    with few_descriptors(20):
        *idle, reading, other = (Workers(Numbers(), 1) for _ in range(6))
        for workers in idle:
            next(workers.batches([[1]]))
        goes_on = reading.batches([[k] for k in range(20)])
        next(goes_on)
        assert [int(targets[0]) for _, targets in other.batches([[3]])] == [3]
        assert [workers._members for workers in idle] == [[]] * 4
        assert [int(targets[0]) for _, targets in goes_on] == list(range(1, 20))
        for workers in (reading, other):
            workers.close()
