#!/usr/bin/env python3
# ruff: noqa: B023, B905, SIM, RET, PT, B007
"""What a drawn step can cost on this GPU. Needs torch >= 2.11 (CUDA) and cuda-bindings >= 13.0 only; about two minutes.
A part that fails is printed and passed over.

A "step" is PLACES places of WORK small kernels each (x.add_ on 64x16x32x32 floats, 4 MB), chosen from OPS candidates:
the shape of a NAS-Bench-201 iteration. host: until the last launch is given; wall: until the GPU is done. Microseconds.
  A  one graph a place, replayed by torch or launched by cuda-bindings; one graph for all; kernel by kernel
  B  all candidates in one graph, undrawn kernel nodes disabled: cost of a toggle, of a disabled node, of a step
  C  a SWITCH node a place, whose bodies hold the captured candidates: cost of a node, of a dead one, three branches
  D  a graph of child graphs: to compose it, to instantiate it, cuGraphExecUpdate
  E  the same work on several streams at once: what several seeds side by side would gain
"""

import ctypes
import statistics
import time
import traceback

import torch
from cuda.bindings import driver as cu, nvrtc

PLACES, OPS, WORK, SHAPE = 240, 5, 8, (64, 16, 32, 32)
STREAM = torch.cuda.Stream()
S = cu.CUstream(STREAM.cuda_stream)
X = [torch.zeros(SHAPE, device="cuda") for _ in range(OPS)]  # candidate k adds to X[k]
KEPT = []  # what others point into


def ok(result):
    """What a call of cuda-bindings returned beside its status."""
    if int(result[0]) != 0:
        raise RuntimeError(repr(result[0]))
    return result[1] if len(result) == 2 else result[1:]


def capture(work, keep=True):
    graph = torch.cuda.CUDAGraph(keep_graph=keep)
    with torch.cuda.stream(STREAM):
        graph.capture_begin(capture_error_mode="thread_local")
        work()
        graph.capture_end()
    KEPT.append(graph)
    return graph


def raw(graph):
    return cu.CUgraph(graph.raw_cuda_graph())


def candidate(k, tensors=X):
    [tensors[k].add_(1.0) for _ in range(WORK)]


def measure(name, run, times=15, per=0):
    """Medians of host and wall time of `run` on STREAM, from idle to idle. per: how many things it does."""
    rows = []
    with torch.cuda.stream(STREAM):
        for _ in range(times + 3):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            given = time.perf_counter()
            torch.cuda.synchronize()
            rows.append((given - start, time.perf_counter() - start))
    host, wall = (1e6 * statistics.median(column) for column in zip(*rows[3:]))
    each = f"   each of {per}: host {host / per:.2f} wall {wall / per:.2f}" if per else ""
    print(f"  {name:<52} host {host:9.1f}  wall {wall:9.1f}{each}", flush=True)
    return wall


def clocked(name, run):
    start, made = time.perf_counter(), run()
    print(f"  {name:<52} once {1e6 * (time.perf_counter() - start):9.1f}", flush=True)
    return made


def ran():
    return [int(x.flatten()[0]) for x in X]


def part_a():
    graphs = [capture(lambda: candidate(0), keep=False) for _ in range(PLACES)]
    measure("240 graphs, torch's replay()", lambda: [g.replay() for g in graphs], per=PLACES)
    execs = [cu.CUgraphExec(g.raw_cuda_graph_exec()) for g in graphs]
    measure("240 graphs, cuGraphLaunch", lambda: [cu.cuGraphLaunch(e, S) for e in execs], per=PLACES)
    whole = capture(lambda: [candidate(0) for _ in range(PLACES)], keep=False)
    measure("one graph of all kernels", whole.replay, per=PLACES * WORK)
    measure("kernel by kernel", lambda: [candidate(0) for _ in range(PLACES)], times=5, per=PLACES * WORK)


def part_b():
    graph = capture(lambda: [candidate(k) for _ in range(PLACES) for k in range(OPS)])
    clocked("instantiate 9600 kernel nodes", graph.instantiate)
    made = cu.CUgraphExec(graph.raw_cuda_graph_exec())
    count = ok(cu.cuGraphGetNodes(raw(graph)))[1]
    nodes = ok(cu.cuGraphGetNodes(raw(graph), count))[0]  # in the order of capture, which `ran` checks
    of = {(i // WORK // OPS, i // WORK % OPS): nodes[i : i + WORK] for i in range(0, count, WORK)}
    measure("launch, all enabled", graph.replay, times=5, per=count)

    def toggle(place, k, on):
        [cu.cuGraphNodeSetEnabled(made, node, on) for node in of[place, k]]

    clocked("disable 7680 nodes", lambda: [toggle(p, k, 0) for p in range(PLACES) for k in range(1, OPS)])
    [x.zero_() for x in X]
    alone = measure("launch, a fifth enabled", graph.replay, times=5)
    print(f"  ran {ran()}, expected {[8 * PLACES * WORK, 0, 0, 0, 0]} of {count} nodes")
    drawn = [0] * PLACES

    def step():
        for place in range(PLACES):
            if place % 5:  # four of five are drawn anew
                toggle(place, drawn[place], 0)
                drawn[place] = (drawn[place] + 1) % OPS
                toggle(place, drawn[place], 1)
        graph.replay()

    print(f"  of it for toggling: {measure('toggle 3072 nodes and launch', step, times=5, per=3072) - alone:.0f}")


CHOOSE = b"""
extern "C" __device__ __cudart_builtin__ void CUDARTAPI cudaGraphSetConditional(cudaGraphConditionalHandle, unsigned);
extern "C" __global__ void choose(const unsigned long long* handles, const int* index, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) cudaGraphSetConditional(handles[i], (unsigned)index[i]);
}"""


def chooser():
    program = ok(nvrtc.nvrtcCreateProgram(CHOOSE, b"choose.cu", 0, [], []))
    arch = b"--gpu-architecture=sm_%d%d" % torch.cuda.get_device_capability()
    ok(nvrtc.nvrtcCompileProgram(program, 1, [arch]))
    cubin = b" " * ok(nvrtc.nvrtcGetCUBINSize(program))
    ok(nvrtc.nvrtcGetCUBIN(program, cubin))
    KEPT.append(module := ok(cu.cuModuleLoadData(cubin)))
    return ok(cu.cuModuleGetFunction(module, b"choose"))


def switches(function, chains):
    """PLACES SWITCH nodes in as many branches as there are chains, of the candidates' graphs; and their index."""
    context, graph = ok(cu.cuCtxGetCurrent()), ok(cu.cuGraphCreate(0))
    handles = [ok(cu.cuGraphConditionalHandleCreate(graph, context, 0, 0)) for _ in range(PLACES)]
    table = torch.tensor([int(handle) for handle in handles], dtype=torch.int64).cuda()
    index = torch.zeros(PLACES, dtype=torch.int32, device="cuda")
    k = cu.CUDA_KERNEL_NODE_PARAMS()
    k.func, k.sharedMemBytes, k.blockDimX = function, 0, 256
    k.gridDimX = k.gridDimY = k.gridDimZ = k.blockDimY = k.blockDimZ = 1
    k.kernelParams = (table.data_ptr(), index.data_ptr(), PLACES), (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    last = [ok(cu.cuGraphAddKernelNode(graph, [], 0, k))] * len(chains)
    for place, handle in enumerate(handles):
        branch = place % len(chains)
        node = cu.CUgraphNodeParams()
        node.type = cu.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
        node.conditional.handle, node.conditional.ctx, node.conditional.size = handle, context, OPS
        node.conditional.type = cu.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_SWITCH
        last[branch] = ok(cu.cuGraphAddNode(graph, [last[branch]], None, 1, node))
        for body, made in zip(node.conditional.phGraph_out, chains[branch]):
            ok(cu.cuGraphAddChildGraphNode(body, [], 0, raw(made)))
    KEPT.extend([table, k])
    return graph, index


def part_c():
    function = chooser()
    for count in (1, 3):
        own = [X] + [[torch.zeros(SHAPE, device="cuda") for _ in range(OPS)] for _ in range(count - 1)]
        chains = [[capture(lambda: candidate(k, tensors)) for k in range(OPS)] for tensors in own]
        graph, index = clocked(f"240 SWITCH nodes of 5 bodies, branches: {count}", lambda: switches(function, chains))
        made = clocked("instantiate", lambda: ok(cu.cuGraphInstantiate(graph, 0)))
        [x.zero_() for x in X]
        index.fill_(2)
        measure("launch, candidate 2 everywhere", lambda: ok(cu.cuGraphLaunch(made, S)), per=PLACES)
        print(f"  ran {ran()}, expected {18 * PLACES // count * WORK} for 2, else 0")
        index.fill_(OPS)
        measure("launch, nothing anywhere", lambda: ok(cu.cuGraphLaunch(made, S)), per=PLACES)
        draws = [torch.randint(OPS, (PLACES,), dtype=torch.int32).pin_memory() for _ in range(20)]
        measure(
            "copy a draw and launch", lambda: (index.copy_(draws.pop(), non_blocking=True), cu.cuGraphLaunch(made, S))
        )


def part_d():
    one, two = (capture(lambda: candidate(k)) for k in (0, 1))

    def compose(made):
        graph, nodes = ok(cu.cuGraphCreate(0)), []
        for _ in range(PLACES):
            nodes = [ok(cu.cuGraphAddChildGraphNode(graph, nodes, len(nodes), raw(made)))]
        return graph

    graph, other = clocked("compose 240 child graphs, twice", lambda: (compose(one), compose(two)))
    made = clocked("instantiate them", lambda: ok(cu.cuGraphInstantiate(graph, 0)))
    measure("launch them", lambda: ok(cu.cuGraphLaunch(made, S)))
    clocked("cuGraphExecUpdate to others alike", lambda: ok(cu.cuGraphExecUpdate(made, other)))


def part_e():
    for count in (1, 2, 4, 8):
        own = [torch.zeros(SHAPE, device="cuda") for _ in range(count)]
        graphs = [capture(lambda: [candidate(0, [x]) for _ in range(PLACES)], keep=False) for x in own]
        execs = [cu.CUgraphExec(graph.raw_cuda_graph_exec()) for graph in graphs]
        KEPT.append(streams := [torch.cuda.Stream() for _ in own])
        pairs = [(made, cu.CUstream(stream.cuda_stream)) for made, stream in zip(execs, streams)]
        measure(f"steps on as many streams: {count}", lambda: [cu.cuGraphLaunch(*p) for p in pairs], per=count)


if __name__ == "__main__":
    print(torch.cuda.get_device_name(), torch.__version__, "driver", ok(cu.cuDriverGetVersion()))
    candidate(0)  # so that its kernel is loaded
    for part in (part_a, part_b, part_c, part_d, part_e):
        started = time.perf_counter()
        print(f"{part.__name__}:", flush=True)
        try:
            part()
        except Exception:
            print(traceback.format_exc())
        KEPT.clear()
        print(f"  ({time.perf_counter() - started:.1f} s)", flush=True)
