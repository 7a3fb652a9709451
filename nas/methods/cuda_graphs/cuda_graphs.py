"""Records what a GPU is given to do, and replays it: CUDA graphs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from nas.methods.cuda_graphs.recorder import Replay


class CudaGraphs:
    """The `Recorder` of a GPU. Its replays run on whatever stream is the current one."""

    def __init__(self, device: torch.device) -> None:
        # With its number, as a tensor's device has it.
        self.device = torch.device(device.type, torch.cuda.current_device() if device.index is None else device.index)
        self._stream = torch.cuda.Stream(self.device)

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """On the stream that records, so that all that libraries prepare for it is there before."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def record(self, work: Replay, pool: Any) -> Replay:
        """Raises RuntimeError for work that CUDA cannot record, such as one that waits for the GPU."""
        # Not torch.cuda.graph, which collects garbage and empties the cache each time: a second, for a thousand graphs.
        graph = torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()  # a collection may free graphs that nobody has any more, which CUDA refuses while it records
        try:
            with self.rehearsing():
                graph.capture_begin(pool, capture_error_mode="thread_local")  # the loader's thread may use the GPU
                try:
                    work()
                except BaseException:
                    with suppress(RuntimeError):  # of the recording, which is of no use any more
                        graph.capture_end()
                    raise
                graph.capture_end()
        finally:
            if collects:
                gc.enable()
        return graph.replay
