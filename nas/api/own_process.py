"""Restores at the end of a run what the run sets for the whole process, e.g. seeds and threads."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import torch

from nas.errors import ConfigError
from nas.runtime import distributed, rng
from nas.storage.signals import Interrupted


class Running:
    """lock: held by the thread that makes a run, which may make another inside of it, e.g. in a hook."""

    lock = threading.RLock()

    @classmethod
    def renew(cls) -> None:
        cls.lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=Running.renew)  # the thread that holds it is not in the new process


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Raises ConfigError if another thread makes a run: runs share random generators, threads and determinism."""
    lock = Running.lock
    if not lock.acquire(blocking=False):
        raise ConfigError(
            "another thread of this process makes a run, expected one run at a time, as runs share torch's global "
            "random generators",
            fix="make the runs one after another, or each in a process of its own",
        )
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def own_modes() -> Iterator[None]:
    """Sets what a program may have set for all that follows as it is at its start: gradients are recorded, no autocast,
    tensors are made on the CPU. Puts the global random generators back at its end."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(rng.put_back())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":  # else not, as it would slow every operation down
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """Puts back what `Runtime.start` sets: seeds, threads, determinism. A signal, once the state is saved, ends the
    program as it does without this project. Inside, modes are those of `own_modes`, and no other thread makes a run."""
    started = os.environ.get("WORLD_SIZE", "1")
    if started.isdecimal() and int(started) > distributed.world():
        print(
            f"warning: {started} processes were started (WORLD_SIZE), and each of them does all of this alone; "
            "torchrun -m nas.cli.run shares every batch between them",
            file=sys.stderr,
        )
    with alone():
        threads = torch.get_num_threads()
        deterministic = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        filled, benchmarks = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark  # type: ignore[attr-defined]
        try:
            with own_modes():
                yield
        except Interrupted as stop:
            if stop.received == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + stop.received) from None
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = benchmarks
            torch.set_num_threads(threads)
