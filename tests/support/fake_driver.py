"""A CUDA driver with graphs whose kernels are Python functions, as far as cuda-bindings is used to compose graphs."""

import contextlib
import ctypes
import itertools
import types

NODES = itertools.count(1)


class Node:
    def __init__(self, kind, run=None, waits=()):
        self.kind, self.run, self.waits, self.number = kind, run, list(waits), next(NODES)

    def __int__(self):
        return self.number


class Graph:
    def __init__(self):
        self.nodes, self.destroyed = [], False

    def add(self, kind, run, waits):
        assert all(node in self.nodes for node in waits)
        self.nodes.append(Node(kind, run, waits))
        return self.nodes[-1]

    def run(self):
        """Each node after those that it waits for: they are added in such an order."""
        done = set()
        for node in self.nodes:
            assert all(before in done for before in node.waits)
            done.add(node)
            node.run()


class Recorded:
    """A torch.cuda.CUDAGraph of some kernels, in a chain."""

    def __init__(self, *kernels):
        self.graph, before = Graph(), []
        for kernel in kernels:
            before = [self.graph.add("KERNEL", kernel, before)]

    def raw_cuda_graph(self):
        return self.graph


class Driver:
    """version: of CUDA. launched: how often a graph was."""

    CUgraphNodeType = types.SimpleNamespace(
        CU_GRAPH_NODE_TYPE_CONDITIONAL="CONDITIONAL",
    )
    CUgraphConditionalNodeType = types.SimpleNamespace(CU_GRAPH_COND_TYPE_SWITCH="SWITCH")
    CUDA_KERNEL_NODE_PARAMS = types.SimpleNamespace

    def __init__(self, version=13000):
        self.version, self.launched, self.indices = version, 0, {}
        self.destroyed = []
        self.handles = itertools.count(100)

    CUgraph = CUstream = staticmethod(lambda raw: raw)

    def CUgraphNodeParams(self):  # noqa: N802, the driver's name
        return types.SimpleNamespace(conditional=types.SimpleNamespace())

    def cuDriverGetVersion(self):  # noqa: N802
        return 0, self.version

    def cuCtxGetCurrent(self):  # noqa: N802
        return 0, "context"

    def cuGraphCreate(self, flags):  # noqa: N802
        return 0, Graph()

    def cuGraphConditionalHandleCreate(self, graph, context, default, flags):  # noqa: N802
        return 0, next(self.handles)

    def cuGraphAddKernelNode(self, graph, waits, count, params):  # noqa: N802
        assert count == len(waits)
        (table, chosen, places), _ = params.kernelParams

        def choose():
            handles = (ctypes.c_int64 * places).from_address(table)
            self.indices |= dict(zip(handles, (ctypes.c_int32 * places).from_address(chosen), strict=True))

        return 0, graph.add("KERNEL", choose, waits)

    def cuGraphAddNode(self, graph, waits, data, count, params):  # noqa: N802
        of = params.conditional
        of.phGraph_out = [Graph() for _ in range(of.size)]

        def switch():
            index = self.indices[of.handle] % 2**32
            if index < of.size:
                of.phGraph_out[index].run()

        return 0, graph.add("CONDITIONAL", switch, waits)

    def cuGraphAddChildGraphNode(self, graph, waits, count, child):  # noqa: N802
        return 0, graph.add("GRAPH", child.run, waits)

    def cuGraphInstantiate(self, graph, flags):  # noqa: N802
        return 0, graph

    def cuGraphLaunch(self, made, stream):  # noqa: N802
        self.launched += 1
        made.run()
        return (0,)

    def cuGraphExecDestroy(self, made):  # noqa: N802
        self.destroyed.append(made)

    cuGraphDestroy = cuGraphExecDestroy  # noqa: N815


class Cuda:
    """What a recorder asks of torch.cuda and its allocator, on a machine without a GPU. fails: at which call, with
    what: {"begin": error}. A failed capture stays under way, as in torch 2.11."""

    def __init__(self):
        self.fails, self.under_way, self.captures, self.reserved, self.captured = {}, set(), 0, 0, []
        self.pools, self.emptied = itertools.count(1), 0

    def step(self, name):
        if name in self.fails:
            raise self.fails.pop(name)

    def patch(self, monkeypatch):
        import torch

        fake, stream = self, types.SimpleNamespace(wait_stream=lambda other: None, cuda_stream=7)

        class Graph:
            def __init__(self, keep_graph=False):
                self.keep = keep_graph

            def capture_begin(self, pool=None, capture_error_mode="global"):
                fake.step("begin")
                assert not fake.under_way, "a capture is under way"
                self.pool = pool
                fake.under_way.add(pool)

            def capture_end(self):
                fake.step("end")
                fake.under_way.remove(self.pool)
                fake.captured.append(self)

            def replay(self):
                pass

        def end_allocation(device, pool):
            if pool not in fake.under_way:
                raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

        def empty():
            assert not fake.under_way, "nothing is given back while a capture is under way"
            fake.emptied += 1

        zeros = torch.zeros
        for name, value in {
            "CUDAGraph": Graph,
            "Stream": lambda device: stream,
            "stream": lambda one: contextlib.nullcontext(),
            "current_stream": lambda device=None: stream,
            "current_device": lambda: 0,
            "synchronize": lambda device=None: None,
            "memory_reserved": lambda device=None: fake.reserved,
            "graph_pool_handle": lambda: (0, next(fake.pools)),
            "get_device_properties": lambda device: types.SimpleNamespace(total_memory=1000 * 2**20),
            "empty_cache": empty,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **named: zeros(*size, **named))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocation, raising=False)
        monkeypatch.setattr(
            torch._C, "_cuda_releasePool", lambda device, pool: fake.under_way.discard(pool), raising=False
        )
        return self
