"""Builds one CUDA graph from all recordings that a pass may need, with cuda-bindings.

A launch sets which candidate runs at each place. There are two ways; the first one that the device supports is used:
- One SWITCH node per place, whose bodies are the graphs of the candidates (CUDA 12.8). A kernel before them sets the
  indices.
- All nodes of all candidates. The nodes of undrawn candidates are disabled before a launch (CUDA 11.6).
"""

import ctypes
import graphlib
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from nas.methods.cuda_graphs.recorder import Launch

Graphs = Sequence[Mapping[int, Any]]  # of each place, by index: torch.cuda.CUDAGraph(keep_graph=True)

CHOOSE = b"""
extern "C" __device__ __cudart_builtin__ void CUDARTAPI cudaGraphSetConditional(cudaGraphConditionalHandle, unsigned);
extern "C" __global__ void choose(const unsigned long long* handles, const int* index, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) cudaGraphSetConditional(handles[i], (unsigned)index[i]);
}"""


class UnavailableError(Exception):
    """The machine lacks something that is needed for composing."""


class Composer:
    """Composes graphs in the first way that works on a device. A way that has failed is not tried again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ways: dict[str, Callable[..., Launch]] = {"switched nodes": switched, "enabled nodes": toggled}

    def compose(self, places: Graphs) -> Launch | None:
        """Returns a composed graph. Returns None, and prints why, if no way works."""
        problems: list[str] = []
        launch = None
        while self._ways and launch is None:
            name, way = next(iter(self._ways.items()))
            try:
                launch = way(places, self._device)
            except Exception as error:  # whatever drivers and their bindings raise
                problems.append(f"{name}: {str(error) or type(error).__name__}")
                del self._ways[name]
        if problems:
            instead = next(iter(self._ways), "one replay for each operation, as by runtime.cuda_graphs=true,")
            print(
                f"warning: runtime.cuda_graphs=composed has not all it needs ({'; '.join(problems)}); {instead} launch "
                "the same instead",
                file=sys.stderr,
            )
        return launch


def bindings() -> Any:
    """Returns the bindings of CUDA's driver. Raises UnavailableError if they are not installed."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise UnavailableError("cuda-bindings is not installed") from error
    return driver


def driver(oldest: int) -> Any:
    """Returns the bindings of the driver. Raises UnavailableError if the driver is too old."""
    cu = bindings()
    if (version := ok(cu.cuDriverGetVersion())) < oldest:
        raise UnavailableError(f"needs a driver of CUDA {cuda(oldest)}, this one is of {cuda(version)}")
    return cu


def cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def ok(result: Sequence[Any]) -> Any:
    """Returns what a call of cuda-bindings returned besides its status.

    Raises RuntimeError if the status is an error.
    """
    if int(result[0]) != 0:
        raise RuntimeError(repr(result[0]))
    return result[1] if len(result) == 2 else result[1:]


def switched(places: Graphs, device: torch.device) -> Launch:
    cu = driver(12080)
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
    _, start = launching(cu, graph, device, table)

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


def toggled(places: Graphs, device: torch.device) -> Launch:
    cu = driver(11060)
    context, graph = ok(cu.cuCtxGetCurrent()), ok(cu.cuGraphCreate(0))
    nodes: list[dict[int, list[Any]]] = []
    last: list[Any] = []
    for place in places:
        nodes.append({})
        for index, recorded in place.items():
            nodes[-1][index] = []
            for node in in_order(cu, raw(cu, recorded)):
                last = [copied(cu, node, graph, last, context)]
                nodes[-1][index] += last
    made, start = launching(cu, graph, device)

    def toggle(some: Sequence[Any], on: int) -> None:
        for node in some:
            ok(cu.cuGraphNodeSetEnabled(made, node, on))

    for place_nodes in nodes:
        for some in place_nodes.values():
            toggle(some, 0)
    running = [-1] * len(places)

    def launch(indices: Sequence[int]) -> None:
        for number, (of, index) in enumerate(zip(nodes, indices, strict=True)):
            if index != running[number]:
                toggle(of.get(running[number], ()), 0)
                toggle(of.get(index, ()), 1)
                running[number] = index
        start()

    return launch


def raw(cu: Any, graph: Any) -> Any:
    return cu.CUgraph(graph.raw_cuda_graph())


def in_order(cu: Any, graph: Any) -> list[Any]:
    """Returns the nodes of a graph, each after the nodes that it depends on."""
    *_, count = ok(cu.cuGraphGetNodes(graph))
    nodes = {int(node): node for node in ok(cu.cuGraphGetNodes(graph, count))[0]}
    waits: dict[int, list[int]] = {node: [] for node in nodes}
    *_, count = ok(cu.cuGraphGetEdges(graph))
    before, after, *_ = ok(cu.cuGraphGetEdges(graph, count))
    for one, two in zip(before[:count], after[:count], strict=True):
        waits[int(two)].append(int(one))
    return [nodes[node] for node in graphlib.TopologicalSorter(waits).static_order()]


def copied(cu: Any, node: Any, graph: Any, after: Sequence[Any], context: Any) -> Any:
    """Adds a copy of a recorded node to another graph.

    Raises UnavailableError for a kind of node that cannot be disabled.
    """
    kinds, kind = cu.CUgraphNodeType, ok(cu.cuGraphNodeGetType(node))
    if kind == kinds.CU_GRAPH_NODE_TYPE_KERNEL:
        made = ok(cu.cuGraphAddKernelNode(graph, after, len(after), ok(cu.cuGraphKernelNodeGetParams(node))))
        ok(cu.cuGraphKernelNodeCopyAttributes(made, node))
        return made
    if kind == kinds.CU_GRAPH_NODE_TYPE_MEMSET:
        return ok(cu.cuGraphAddMemsetNode(graph, after, len(after), ok(cu.cuGraphMemsetNodeGetParams(node)), context))
    if kind == kinds.CU_GRAPH_NODE_TYPE_MEMCPY:
        return ok(cu.cuGraphAddMemcpyNode(graph, after, len(after), ok(cu.cuGraphMemcpyNodeGetParams(node)), context))
    raise UnavailableError(f"a recorded node of the kind {kind} cannot be disabled")


def launching(cu: Any, graph: Any, device: torch.device, *read: torch.Tensor) -> tuple[Any, Callable[[], None]]:
    """Returns a function that launches the executable form of a graph on the current stream.

    Both are destroyed with it.

    read: tensors that the kernels of the graph read.
    """
    made = ok(cu.cuGraphInstantiate(graph, 0))

    def start() -> None:
        ok(cu.cuGraphLaunch(made, cu.CUstream(torch.cuda.current_stream(device).cuda_stream)))

    def destroy(*_: torch.Tensor) -> None:
        torch.cuda.synchronize(device)  # it may be running
        cu.cuGraphExecDestroy(made)
        cu.cuGraphDestroy(graph)

    weakref.finalize(start, destroy, *read).atexit = False
    return made, start
