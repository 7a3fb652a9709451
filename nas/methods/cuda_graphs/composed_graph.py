"""Builds one CUDA graph from all recordings that a pass may need, with cuda-bindings.

Each place is a SWITCH node, whose bodies are the graphs of the candidates (CUDA 12.8). A kernel before the first place
sets the indices of all places. Disabling the nodes of undrawn candidates instead does not pay: on an H200 it took
2.5 us a node, longer than a step in all.
"""

import ctypes
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from nas.methods.cuda_graphs.recorder import Launch

Graphs = Sequence[Mapping[int, Any]]  # of each place, by index: torch.cuda.CUDAGraph(keep_graph=True)

SWITCHES = 12080  # the CUDA version from which drivers have SWITCH nodes
CHOOSE = b"""
extern "C" __device__ __cudart_builtin__ void CUDARTAPI cudaGraphSetConditional(cudaGraphConditionalHandle, unsigned);
extern "C" __global__ void choose(const unsigned long long* handles, const int* index, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) cudaGraphSetConditional(handles[i], (unsigned)index[i]);
}"""


class UnavailableError(Exception):
    """The machine lacks something that is needed for composing."""


class Composer:
    """Composes graphs, if the device can. After a failure it does not try again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._failed = False

    def compose(self, places: Graphs) -> Launch | None:
        """Returns a composed graph. Returns None if that is impossible, and prints why once."""
        if self._failed:
            return None
        try:
            return switched(places, self._device)
        except Exception as error:  # whatever drivers and their bindings raise
            self._failed = True
            print(
                f"warning: runtime.cuda_graphs=composed has not all it needs ({str(error) or type(error).__name__}); "
                "one replay for each operation, as by runtime.cuda_graphs=true, launches the same instead",
                file=sys.stderr,
            )
            return None


def bindings() -> Any:
    """Returns the bindings of CUDA's driver. Raises UnavailableError if they are not installed."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise UnavailableError("cuda-bindings is not installed") from error
    return driver


def driver() -> Any:
    """Returns the bindings of the driver. Raises UnavailableError if the driver has no SWITCH nodes."""
    cu = bindings()
    if (version := ok(cu.cuDriverGetVersion())) < SWITCHES:
        raise UnavailableError(f"needs a driver of CUDA 12.8, this one is of {version // 1000}.{version % 1000 // 10}")
    return cu


def ok(result: Sequence[Any]) -> Any:
    """Returns what a call of cuda-bindings returned besides its status.

    Raises RuntimeError if the status is an error.
    """
    if int(result[0]) != 0:
        raise RuntimeError(repr(result[0]))
    return result[1] if len(result) == 2 else result[1:]


def switched(places: Graphs, device: torch.device) -> Launch:
    cu = driver()
    context, graph = ok(cu.cuCtxGetCurrent()), ok(cu.cuGraphCreate(0))
    handles = [ok(cu.cuGraphConditionalHandleCreate(graph, context, 0, 0)) for _ in places]
    table = torch.tensor([int(handle) for handle in handles], dtype=torch.int64).to(device)
    chosen = torch.zeros(len(places), dtype=torch.int32, device=device)
    kernel = cu.CUDA_KERNEL_NODE_PARAMS()
    kernel.func, kernel.sharedMemBytes, kernel.blockDimX = choose_kernel(cu), 0, 256
    kernel.gridDimX = kernel.gridDimY = kernel.gridDimZ = kernel.blockDimY = kernel.blockDimZ = 1
    kernel.kernelParams = (
        (table.data_ptr(), chosen.data_ptr(), len(places)),
        (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int),
    )
    last = ok(cu.cuGraphAddKernelNode(graph, [], 0, kernel))
    for handle, place in zip(handles, places, strict=True):
        node = cu.CUgraphNodeParams()
        node.type = cu.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
        node.conditional.handle, node.conditional.ctx = handle, context
        node.conditional.type = cu.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_SWITCH
        node.conditional.size = max(place, default=0) + 1  # an index past it runs nothing, and -1 is past every end
        last = ok(cu.cuGraphAddNode(graph, [last], None, 1, node))
        for index, recorded in place.items():
            ok(cu.cuGraphAddChildGraphNode(node.conditional.phGraph_out[index], [], 0, raw(cu, recorded)))
    start = launching(cu, graph, device, table)

    def launch(indices: Sequence[int]) -> None:
        # A fresh pinned row each time: torch keeps it until the copy is done, which the host does not wait for.
        row = torch.tensor(indices, dtype=torch.int32, pin_memory=device.type == "cuda")
        chosen.copy_(row, non_blocking=True)
        start()

    return launch


def choose_kernel(cu: Any) -> Any:
    from cuda.bindings import nvrtc

    program = ok(nvrtc.nvrtcCreateProgram(CHOOSE, b"choose.cu", 0, [], []))
    ok(nvrtc.nvrtcCompileProgram(program, 1, [b"--gpu-architecture=sm_%d%d" % torch.cuda.get_device_capability()]))
    binary = b" " * ok(nvrtc.nvrtcGetCUBINSize(program))
    ok(nvrtc.nvrtcGetCUBIN(program, binary))
    return ok(cu.cuModuleGetFunction(ok(cu.cuModuleLoadData(binary)), b"choose"))  # the module stays loaded


def raw(cu: Any, graph: Any) -> Any:
    return cu.CUgraph(graph.raw_cuda_graph())


def launching(cu: Any, graph: Any, device: torch.device, read: torch.Tensor) -> Callable[[], None]:
    """Returns a function that launches the executable form of a graph on the current stream.

    Both are destroyed with it.

    read: a tensor that the kernels of the graph read.
    """
    made = ok(cu.cuGraphInstantiate(graph, 0))

    def start() -> None:
        ok(cu.cuGraphLaunch(made, cu.CUstream(torch.cuda.current_stream(device).cuda_stream)))

    def destroy(_: torch.Tensor) -> None:
        torch.cuda.synchronize(device)  # it may be running
        cu.cuGraphExecDestroy(made)
        cu.cuGraphDestroy(graph)

    weakref.finalize(start, destroy, read).atexit = False
    return start
