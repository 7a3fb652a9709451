"""A launching process gets a signal while it runs a job. The job gets the signal too."""

import multiprocessing
import os
import signal
import sys

from nas.cli import parallel
from nas.storage.signals import SIGNALS


def wait_for_a_signal(pipe):
    pipe.send("ready")
    pipe.send(int(signal.sigwait(SIGNALS)))


def main():
    sys.argv = ["nas-search", "-m", "hydra/launcher=joblib"]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=wait_for_a_signal, args=(theirs,))
    got = []
    try:
        with parallel.signals_reach_jobs():
            child.start()
            got.append(ours.recv())
            os.kill(os.getpid(), signal.SIGTERM)
            got.append(signal.Signals(ours.recv()).name if ours.poll(30) else "nothing")
            raise parallel.JobStoppedError(143)
    finally:
        same = signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
        child.join(10)
        print(*got, end=f", mask as before: {same}\n")


if __name__ == "__main__":
    main()
