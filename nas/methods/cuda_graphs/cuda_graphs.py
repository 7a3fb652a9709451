"""Records what a GPU is given to do, and replays it: CUDA graphs."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from nas.methods.cuda_graphs.composed_graph import Composer
from nas.methods.cuda_graphs.recorder import Launch, Replay, is_out_of_memory

MIB = 2**20


class CudaGraphs:
    """The `Recorder` of a GPU. Its replays run on whatever stream is the current one.

    composes: one graph for all that a pass launches, see `nas.methods.cuda_graphs.composed_graph`. share: of the
    device's memory that recordings may keep. Nothing more is recorded beyond it, nor after one that ran out of memory.
    """

    def __init__(self, device: torch.device, *, composes: bool = False, share: float = 0.5) -> None:
        # With its number, as a tensor's device has it.
        self.device = torch.device(device.type, torch.cuda.current_device() if device.index is None else device.index)
        self.kept = 0
        self._stream = torch.cuda.Stream(self.device)  # one for all, as cuBLAS keeps a workspace for each
        self._limit = share * torch.cuda.get_device_properties(self.device).total_memory
        # All of them: torch frees the workspaces of a stream with any graph of it, and the others still write there.
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._of: dict[Replay, torch.cuda.CUDAGraph] = {}
        self._composer = Composer(self.device) if composes else None
        self._full = ""  # why nothing more is recorded

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """On the stream that records, so that all that libraries prepare for it is there before."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def record(self, work: Replay, pool: Any) -> Replay:
        """Raises RuntimeError for work that CUDA cannot record, such as one that waits for the GPU, and where there is
        no memory for it. Either leaves torch as it was."""
        if self._full:
            raise RuntimeError(self._full)
        before = torch.cuda.memory_reserved(self.device)
        graph = torch.cuda.CUDAGraph(keep_graph=self._composer is not None)
        self._graphs.append(graph)
        try:
            with apart(), self.rehearsing():
                self._capture(graph, work, pool)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            self._full = f"out of memory: recordings keep {self.kept / MIB:.0f} MiB"
            raise RuntimeError(self._full) from error
        self.kept += max(0, torch.cuda.memory_reserved(self.device) - before)
        if self.kept > self._limit:
            self._full = f"recordings keep {self.kept / MIB:.0f} MiB, their share of the device's memory"
        replay: Replay = graph.replay
        self._of[replay] = graph
        return replay

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Replay, pool: Any) -> None:
        try:
            graph.capture_begin(pool, capture_error_mode="thread_local")  # the loader's thread may use the GPU
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):  # of the recording, which is of no use any more
                    graph.capture_end()
                raise
            graph.capture_end()
        except BaseException:
            self._mend(pool)
            raise

    def _mend(self, pool: Any) -> None:
        """Do what torch leaves undone where a capture fails: its allocator and its random generator would take it for
        still under way, neither giving memory back nor drawing numbers."""
        with suppress(RuntimeError):  # the first raises where nothing is under way, and there is nothing to release
            torch._C._cuda_endAllocateToPool(self.device.index, pool)
            torch._C._cuda_releasePool(self.device.index, pool)
        with suppress(RuntimeError):
            place, graph = torch.zeros(1, device=self.device), torch.cuda.CUDAGraph()
            self._graphs.append(graph)
            graph.capture_begin(capture_error_mode="thread_local")
            place.add_(1)
            graph.capture_end()

    def compose(self, places: Sequence[Mapping[int, Replay]]) -> Launch | None:
        if self._composer is None:
            return None
        return self._composer.compose([{index: self._of[replay] for index, replay in one.items()} for one in places])


@contextmanager
def apart() -> Iterator[None]:
    """Inside, nothing happens beside what is recorded: no garbage is collected, as CUDA refuses to free graphs then,
    and cuDNN tries no other plans, which would be recorded and keep the memory of the largest."""
    # Not torch.cuda.graph, which collects garbage and empties the cache each time: a second, for a thousand graphs.
    collects, tries = gc.isenabled(), torch.backends.cudnn.benchmark
    gc.disable()
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = tries
        if collects:
            gc.enable()
