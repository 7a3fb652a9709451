"""Records GPU work as CUDA graphs and replays it."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch

from nas.methods.cuda_graphs.composed_graph import Composer
from nas.methods.cuda_graphs.faster_ops import FasterOps
from nas.methods.cuda_graphs.recorder import Launch, Replay, is_out_of_memory

MIB = 2**20


class CudaGraphs:
    """The `Recorder` of a GPU. Replays run on the current stream.

    composes: whether a pass becomes one graph, see `nas.methods.cuda_graphs.composed_graph`. triton: whether some
    operations are recorded as Triton kernels, see `nas.methods.cuda_graphs.faster_ops`. share: the share of the
    device's memory that recordings may keep. Beyond it, or after a recording that ran out of memory, nothing more is
    recorded.
    """

    def __init__(
        self, device: torch.device, *, composes: bool = False, triton: bool = False, share: float = 0.5
    ) -> None:
        # With its number, as a tensor's device has it.
        self.device = torch.device(device.type, torch.cuda.current_device() if device.index is None else device.index)
        self.kept = 0
        self._stream = torch.cuda.Stream(self.device)  # one for all, as cuBLAS keeps a workspace for each
        self._limit = share * torch.cuda.get_device_properties(self.device).total_memory
        # All of them: torch frees the workspaces of a stream with any graph of it, and the others still write there.
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._of: dict[Replay, torch.cuda.CUDAGraph] = {}
        self._composer = Composer(self.device) if composes else None
        self._triton = triton
        self._full = ""  # why nothing more is recorded

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """A context on the recording stream.

        Work that runs in it lets libraries prepare what they need before the recording.
        """
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(self._stream), FasterOps() if self._triton else nullcontext():
                yield
        finally:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def record(self, work: Replay, pool: Any) -> Replay:
        """Raises RuntimeError if CUDA cannot record the work, for example because it waits for the GPU, or if memory is
        short.

        torch is left as it was in both cases.
        """
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
        """Finishes what torch leaves unfinished after a failed capture.

        Otherwise torch's allocator and random generator would still be in capture mode: the allocator would return no
        memory,
        and the generator would draw no numbers.
        """
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
    """A context that keeps other work out of a recording.

    No garbage is collected, because CUDA refuses to free graphs during a capture. cuDNN does not try other plans: they
    would be recorded, and the memory of the largest one would be kept.
    """
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
