"""The recorder of a GPU, on an imitated torch.cuda and driver: what it leaves behind, and what it composes."""

import gc
import sys

import pytest
import torch
from fake_driver import Cuda, Driver, Recorded
from torch.overrides import _get_current_function_mode

from nas.methods.cuda_graphs import composed_graph
from nas.methods.cuda_graphs.composed_graph import Composer, switched
from nas.methods.cuda_graphs.cuda_graphs import CudaGraphs
from nas.methods.cuda_graphs.faster_ops import FasterOps
from nas.methods.cuda_graphs.recorder import is_out_of_memory

CPU = torch.device("cpu")
REFUSED = RuntimeError("operation not permitted when stream is capturing")
MEMORY = torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def cuda(monkeypatch):
    return Cuda().patch(monkeypatch)


def nothing():
    pass


@pytest.mark.parametrize("error", [REFUSED, MEMORY], ids=["refused", "memory"])
@pytest.mark.parametrize("moment", ["begin", "work", "end", "end after work"])
def test_a_failed_recording_leaves_torch_as_it_was(cuda, moment, error, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    recorder = CudaGraphs(torch.device("cuda"))
    pool, seen = recorder.pool(), []

    def work():
        seen.append((gc.isenabled(), torch.backends.cudnn.benchmark))
        if "work" in moment:
            raise error

    if moment != "work":
        cuda.fails = {moment.split()[0]: error}
    with pytest.raises(RuntimeError, match="out of memory" if error is MEMORY else "not permitted"):
        recorder.record(work, pool)
    assert not cuda.under_way
    assert gc.isenabled()
    assert torch.backends.cudnn.benchmark
    assert seen == [(False, False)] * (moment != "begin")
    assert len(cuda.captured) == 1 + (moment == "work")  # something trivial, by which torch is told that it is over
    # Out of memory, nothing more is tried, and what is free was given back.
    assert cuda.emptied == (error is MEMORY)
    if error is MEMORY:
        with pytest.raises(RuntimeError, match="out of memory: recordings keep 0 MiB") as caught:
            recorder.record(nothing, pool)
        assert is_out_of_memory(caught.value)
    else:
        recorder.record(nothing, pool)()


def test_graphs_live_as_long_as_their_recorder_and_keep_a_share_of_the_memory(cuda):
    recorder, graphs = CudaGraphs(torch.device("cuda", 0)), []

    def work():
        cuda.reserved += 200 * 2**20

    for _ in range(3):
        graphs.append(recorder.record(work, recorder.pool()).__self__)
    assert recorder.kept == 600 * 2**20
    with pytest.raises(RuntimeError, match="recordings keep 600 MiB, their share of the device's memory"):
        recorder.record(work, recorder.pool())
    held = sum(any(one is graph for graph in recorder._graphs) for one in graphs)
    assert held == 3
    assert recorder.compose([{0: nothing}]) is None


@pytest.mark.parametrize("triton", [False, True])
def test_operations_are_rehearsed_and_recorded_with_the_faster_kernels(cuda, triton):
    recorder, seen = CudaGraphs(torch.device("cuda"), triton=triton), []

    def work():
        seen.append(isinstance(_get_current_function_mode(), FasterOps))

    with recorder.rehearsing():
        work()
    recorder.record(work, recorder.pool())
    work()
    assert seen == [triton, triton, False]


def test_an_error_that_hides_want_of_memory():
    hidden = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    assert not is_out_of_memory(hidden)
    hidden.__context__ = MEMORY  # as where it is raised while the other is handled
    assert is_out_of_memory(hidden)


@pytest.fixture
def driver(monkeypatch, cuda):
    found = Driver()
    monkeypatch.setattr(composed_graph, "choose_kernel", lambda cu: "choose")
    monkeypatch.setattr(composed_graph, "bindings", lambda: found)
    return found


def places(ran):
    """Three places, of which the second has recorded its candidates 0 and 2; every candidate is two kernels."""

    def recorded(place, index):
        return Recorded(*(lambda part=part: ran.append((place, index, part)) for part in "ab"))

    return [{i: recorded(p, i) for i in indices} for p, indices in enumerate([(0,), (0, 2), (1, 2)])]


def test_a_launch_runs_what_is_drawn_in_order_and_nothing_of_dead_edges(driver):
    launch = switched(places(ran := []), CPU)
    for row in ([0, 2, 1], [-1, 0, 2], [-1, -1, -1], [0, 1, 0], [0, 2, 1]):
        ran.clear()
        launch(row)
        held = [(0,), (0, 2), (1, 2)]
        assert ran == [(p, i, part) for p, i in enumerate(row) if i in held[p] for part in "ab"]
    assert driver.launched == 5
    assert not driver.destroyed
    del launch
    gc.collect()
    assert len(driver.destroyed) == 2  # the graph, and its executable form


def test_an_old_driver_replays_one_by_one(driver, capsys):
    driver.version = 12040
    composer = Composer(CPU)
    assert [composer.compose(places([])) for _ in range(2)] == [None, None]
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1
    assert "needs a driver of CUDA 12.8, this one is of 12.4); one replay for each operation" in told


def test_without_bindings_operations_are_replayed_one_by_one(cuda, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    recorder = CudaGraphs(torch.device("cuda"), composes=True)
    replay = recorder.record(nothing, recorder.pool())
    assert replay.__self__.keep
    assert recorder.compose([{0: replay}]) is None
    assert recorder.compose([{0: replay}]) is None
    told = capsys.readouterr().err
    assert told.count("warning: runtime.cuda_graphs=composed has not all it needs") == 1
    assert "cuda-bindings is not installed" in told
