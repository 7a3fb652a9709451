"""When the state of a stage is saved, which checkpoints are kept, and signals that stop a run."""

import faulthandler
import os
import pty
import signal
import sys
import threading

import pytest
import torch

from nas.data.loader import between_steps
from nas.errors import CheckpointError, ConfigError, WorkerLostError
from nas.runtime.rng import random_state, set_random_state
from nas.storage import checkpoint_file
from nas.storage.checkpointing import Checkpoints
from nas.storage.signals import AtOnce, Interrupted, Interruption, leave_terminal


def of_run(tmp_path, **settings):
    return Checkpoints(path=tmp_path / "checkpoint.pt", kind="search", **settings)


def kept(tmp_path):
    """The states that are kept, the newest first."""
    paths = [tmp_path / "checkpoint.pt", *sorted(tmp_path.glob("checkpoint.*.pt"))]
    return [checkpoint_file.load(path, "search")["number"] for path in paths]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_ones_are_kept(tmp_path, keep):
    checkpoints = of_run(tmp_path, keep=keep)
    for number in range(5):
        checkpoints.save({"number": number})
    assert kept(tmp_path) == list(range(4, 4 - keep, -1))
    assert len(list(tmp_path.iterdir())) == keep


def test_the_first_of_a_run_is_the_newest(tmp_path):
    of_run(tmp_path).save({"number": 0})
    assert of_run(tmp_path, resume=True).newest()["number"] == 0


def test_without_any_there_is_none(tmp_path):
    assert of_run(tmp_path, resume=True).newest() is None


def test_a_run_that_is_not_resumed_does_not_look(tmp_path):
    (tmp_path / "checkpoint.pt").write_text("whatever")
    assert of_run(tmp_path).newest() is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_newest_one_is_named_and_the_one_before_it_taken(tmp_path, damage, capsys):
    checkpoints = of_run(tmp_path)
    for number in range(2):
        checkpoints.save({"number": number, "weights": torch.ones(100)})
    path = tmp_path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    if damage == "missing":  # a crash between the two renames
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-100])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert of_run(tmp_path, resume=True).newest()["number"] == 0
    warning = capsys.readouterr().err
    if damage == "missing":
        assert warning == ""
    else:
        assert warning == (
            f"warning: {path} is damaged, or not a checkpoint of this project; going on from the one before it\n"
        )


def test_when_all_are_damaged_it_says_so(tmp_path):
    for name in ("checkpoint.pt", "checkpoint.1.pt"):
        (tmp_path / name).write_text("whatever")
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.pt is damaged.*checkpoint\.1\.pt is damaged.*start the run"
    ):
        of_run(tmp_path, resume=True).newest()


def saves_after(checkpoints, steps):
    """After which of so many steps it saves."""
    saved = []
    for step in range(1, steps + 1):
        checkpoints.after_step(lambda step=step: saved.append(step) or {"number": step})
    return saved


def test_every_so_many_steps(tmp_path):
    assert saves_after(of_run(tmp_path, every_steps=3), 7) == [3, 6]


def test_the_end_of_an_epoch_counts(tmp_path):
    checkpoints = of_run(tmp_path, every_steps=3)
    assert saves_after(checkpoints, 2) == []
    checkpoints.save({"number": -1})
    assert saves_after(checkpoints, 4) == [3]


def test_every_so_many_minutes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoints, saved = of_run(tmp_path, every_minutes=2), []
    for step in range(6):
        now[0] += 50  # seconds
        checkpoints.after_step(lambda step=step: saved.append(step) or {"number": step})
    assert saved == [2, 5]


def test_by_default_only_at_the_end_of_an_epoch(tmp_path):
    assert saves_after(of_run(tmp_path), 50) == []


def saves_after_epochs(checkpoints, epochs, now, *, epoch_takes, save_takes):
    """After which of so many epochs it saves, the seconds that those and saving take being given."""
    saved = []
    for epoch in range(1, epochs + 1):
        now[0] += epoch_takes

        def state(epoch=epoch):
            saved.append(epoch)
            now[0] += save_takes
            return {"number": epoch}

        checkpoints.after_epoch(state, last=epoch == epochs)
    return saved


def test_saving_takes_a_share_of_the_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    every = of_run(tmp_path)
    assert saves_after_epochs(every, 5, now, epoch_takes=1.0, save_takes=9.0) == [1, 2, 3, 4, 5]
    long = of_run(tmp_path, share=0.1)
    assert saves_after_epochs(long, 5, now, epoch_takes=20.0, save_takes=1.0) == [1, 2, 3, 4, 5]
    short = of_run(tmp_path, share=0.1)
    assert saves_after_epochs(short, 25, now, epoch_takes=1.0, save_takes=1.0) == [1, 9, 18, 25]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_at_the_end_of_an_epoch_that_is_not_saved_saves_it(tmp_path, when):
    saved = []
    with of_run(tmp_path, share=1e-9) as checkpoints:
        checkpoints.after_epoch(lambda: {"number": 1}, last=False)
        checkpoints.after_step(dict)
        if when == "before":
            os.kill(os.getpid(), signal.SIGTERM)
        checkpoints.after_epoch(lambda: saved.append(2) or {"number": 2}, last=False)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            checkpoints.stop_if_asked(lambda: saved.append(2) or {"number": 2})
    assert saved == [2]
    assert kept(tmp_path) == [2, 1]


@pytest.mark.parametrize("setting", ["every_steps", "every_minutes", "share", "keep"])
@pytest.mark.parametrize("value", [0, -1])
def test_settings_are_positive(tmp_path, setting, value):
    with pytest.raises(ConfigError, match=rf"saving\.{setting} must be > 0, got {value}; set saving\.{setting}"):
        of_run(tmp_path, **{setting: value})


# -- signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"])
def test_a_signal_saves_and_stops_after_the_step(tmp_path, name):
    number, saved = getattr(signal, name), []
    before = signal.getsignal(number)
    with of_run(tmp_path) as checkpoints:
        checkpoints.after_step(lambda: saved.append(1) or {})
        os.kill(os.getpid(), number)
        assert checkpoints.received == number  # and nothing else has happened
        with pytest.raises(Interrupted, match=name) as stop:
            checkpoints.after_step(lambda: saved.append(2) or {"number": 2})
    assert stop.value.received == number
    assert saved == [2]
    assert kept(tmp_path) == [2]
    assert signal.getsignal(number) == before


def test_a_second_control_c_interrupts_at_once():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_first_signal_counts():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interruption.received == signal.SIGTERM


def test_in_a_thread_there_are_no_signals():
    found = []

    def inside():
        with Interruption() as interruption:
            found.append(interruption.received)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [None]


@pytest.fixture
def handled():
    """The signals that a handler of somebody else has got: one that was there before."""
    found = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: found.append(number))
    yield found
    signal.signal(signal.SIGUSR2, before)


def test_a_handler_that_was_there_before_is_called_when_all_is_saved(tmp_path, handled):
    saved = []

    def run():
        with of_run(tmp_path) as checkpoints:
            os.kill(os.getpid(), signal.SIGUSR2)
            checkpoints.after_step(lambda: saved.append(list(handled)) or {"number": 1})

    with pytest.raises(Interrupted):
        run()
    assert saved == [[]]
    assert handled == [signal.SIGUSR2]


def test_of_two_contexts_the_outer_one_calls_it_once(tmp_path, handled):
    def run():
        with AtOnce(), of_run(tmp_path) as checkpoints:
            os.kill(os.getpid(), signal.SIGUSR2)
            checkpoints.after_step(dict)

    with pytest.raises(Interrupted, match="SIGUSR2"):
        run()
    assert handled == [signal.SIGUSR2]


def test_without_a_signal_it_is_not_called(tmp_path, handled):
    with AtOnce(), of_run(tmp_path) as checkpoints:
        checkpoints.after_step(dict)
    assert handled == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"])
def test_outside_of_steps_a_signal_stops_at_once_and_later_ones_do_not_disturb_the_clearing_up(name):
    number, cleared = getattr(signal, name), []

    def run():
        with AtOnce():
            try:
                os.kill(os.getpid(), number)
            finally:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), signal.SIGTERM)
                cleared.append(True)

    with pytest.raises(Interrupted, match=name):
        run()
    assert cleared == [True]


def test_a_signal_after_the_last_step_is_not_forgotten(tmp_path):
    def run():
        with AtOnce(), of_run(tmp_path) as checkpoints:
            checkpoints.after_epoch(lambda: {"number": 1}, last=True)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM"):
        run()
    assert kept(tmp_path) == [1]


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with AtOnce(), Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_python_does_not_know_is_left_alone():
    faulthandler.register(signal.SIGUSR1, file=sys.__stderr__)
    try:
        with AtOnce(), Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.received == signal.SIGTERM
    except Interrupted:
        pass
    finally:
        faulthandler.unregister(signal.SIGUSR1)


def test_a_closed_terminal_is_no_error(monkeypatch):
    ours, theirs = pty.openpty()
    kept_open = os.dup(1)
    try:
        os.dup2(theirs, 1)
        leave_terminal()
        assert os.isatty(1)  # it is open
        os.close(ours)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(1, b"lost")
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.received == signal.SIGHUP
        assert os.write(1, b"goes nowhere") == 12
    finally:
        os.dup2(kept_open, 1)
        os.close(kept_open)
        os.close(theirs)


def test_a_process_whose_launcher_is_gone_saves_and_stops(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.runtime.distributed.world", lambda: 2)
    monkeypatch.setattr("nas.runtime.distributed.highest", list)
    checkpoints = of_run(tmp_path)
    checkpoints.after_step(dict)
    monkeypatch.setattr("os.getppid", lambda: 1)
    with pytest.raises(Interrupted, match="SIGTERM"):
        checkpoints.after_step(lambda: {"number": 1})
    assert kept(tmp_path) == [1]


# -- lost workers


@pytest.mark.parametrize("between", [True, False])
def test_what_is_saved_when_a_worker_is_lost(tmp_path, between):
    lost = WorkerLostError("data worker 1 (process 7) was killed by SIGKILL", fix="see why")
    lost.between_steps = between

    def run():
        (tmp_path / "run" / "search").mkdir(parents=True)
        with of_run(tmp_path / "run" / "search") as checkpoints:
            checkpoints.after_step(lambda: {"number": 1})
            raise lost

    with pytest.raises(WorkerLostError) as raised:
        run()
    assert (tmp_path / "run" / "search" / "checkpoint.pt").exists() == between
    middle = f"all that was done is saved, resume={tmp_path / 'run'} goes on; " if between else ""
    assert str(raised.value) == f"data worker 1 (process 7) was killed by SIGKILL; {middle}see why"


def test_only_a_loop_that_trains_says_that_it_is_between_steps():
    def batches():
        yield 1
        raise WorkerLostError("lost", fix="see why")

    with pytest.raises(WorkerLostError) as raised:
        list(between_steps(batches()))
    assert raised.value.between_steps
    assert not WorkerLostError.between_steps


# -- random generators


def test_every_global_generator_goes_on_where_it_was(tmp_path):
    import random

    import numpy as np

    def draws():
        return [random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))]  # noqa: NPY002

    draws()  # of each a pair is drawn at once: half of one is left over
    checkpoint_file.save(tmp_path / "checkpoint.pt", "search", {"random": random_state()})
    expected = draws()
    draws()
    set_random_state(checkpoint_file.load(tmp_path / "checkpoint.pt", "search")["random"])
    assert draws() == expected
