"""Handles signals during a sweep whose jobs joblib runs side by side: every job saves its state first.

Without this module a signal ends the launching process at once, and joblib kills all jobs when one of its processes
ends. So all processes block the signals. In the launching process a thread receives them and sends them on. A process
of joblib receives them while it has a job. The sweep ends with the exit code of the signal.
"""

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from collections.abc import Iterator

from nas.storage.signals import SIGNALS

LOOK = 0.2  # seconds between looks for processes that the signal has not reached


class JobStoppedError(Exception):
    """A signal has stopped a job.

    It is an Exception, so Hydra passes it to the launching process when the other jobs have ended. After a SystemExit
    joblib would kill them.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def in_job_process() -> bool:
    """Says whether a launcher, such as joblib, has started this process."""
    return multiprocessing.parent_process() is not None


_stopped: list[JobStoppedError] = []  # by which this process's last job has ended
_relays: list["Relay"] = []  # of this process, while joblib runs jobs


@contextlib.contextmanager
def job() -> Iterator[None]:
    """A context for one job, whose handlers are set inside. Signals that came before the job are delivered in it.

    Raises JobStoppedError if a signal has stopped the previous job of this process.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and _relays:  # joblib runs jobs in the launching process if it may use only one
        with _relays[-1].paused():
            yield
        return
    if not in_job_process() or not main:
        yield
        return
    if _stopped:
        raise JobStoppedError(_stopped[0].code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    except JobStoppedError as stop:
        _stopped.append(stop)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        leave_if_launcher_is_gone()


def leave_if_launcher_is_gone() -> None:
    """Ends this process if the process that started it was killed. joblib would wait for a next job without end."""
    launcher = multiprocessing.parent_process()
    if launcher is not None and launcher.pid != os.getppid():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def signals_reach_jobs() -> Iterator[None]:
    """A context for a sweep. Exits with the code of a job that a signal has stopped."""
    if not any(argument.startswith("hydra/launcher=joblib") for argument in sys.argv[1:]):
        yield
        return
    if not hasattr(signal, "sigtimedwait"):  # as on macOS
        yield
        return
    from joblib.externals.loky.backend import resource_tracker

    # Both would unblock signals here when joblib starts them. Their processes are to have them blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for tracker in (multiprocessing.resource_tracker, resource_tracker):
        tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    relay = Relay()
    relay.start()
    _relays.append(relay)
    try:
        yield
    except JobStoppedError as stop:
        sys.exit(stop.code)
    except Exception:
        if relay.received is None:
            raise
        print(f"error: the sweep was stopped by {relay.received.name}", file=sys.stderr)
        sys.exit(128 + relay.received)
    finally:
        _relays.remove(relay)
        relay.end()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(SIGNALS) - before)


class Relay:
    """Sends the first signal on to all processes that this one has started or will start.

    A second Ctrl-C kills them.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def start(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nas-signals", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context for a job in this process, which receives the signals. Raises JobStoppedError after a signal."""
        self.end()
        try:
            if self.received is not None:
                raise JobStoppedError(128 + self.received)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            self.start()

    def _run(self) -> None:
        reached: set[int] = set()
        while not self._ended.is_set():
            taken = signal.sigtimedwait(SIGNALS, LOOK)
            if taken is not None and self.received is not None and taken.si_signo == signal.SIGINT:
                for process in multiprocessing.active_children():
                    process.kill()
                os._exit(128 + signal.SIGINT)
            if taken is not None and self.received is None:
                self.received = signal.Signals(taken.si_signo)
            if self.received is not None:
                for process in multiprocessing.active_children():
                    if process.pid is not None and process.pid not in reached:
                        reached.add(process.pid)
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(process.pid, self.received)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
