#!/usr/bin/env python3
# ruff: noqa: E501, SIM, RET, PT, B007
"""Which operations of the DARTS space can be recorded, what they cost, and what a failed recording leaves behind.

    python scripts/gpu_bench/capture.py      # torch only; about two minutes on an H100. Without a GPU: a smoke test

Each operation is rehearsed and recorded as nas.methods.cuda_graphs does it: forward and backward apart, one pool, one stream,
thread_local, bf16 autocast without its cache, batch 256. A row: microseconds of a replayed forward and backward pass,
MiB that the recording reserves for good (workspaces of cuDNN that a benchmark has chosen are among them), and the error.
"""

import time

import torch
import torch.nn.functional as F
from torch import nn

GPU = torch.cuda.is_available()
DEVICE, BATCH = ("cuda", 256) if GPU else ("cpu", 2)
STREAM = torch.cuda.Stream() if GPU else None


def conv(c, k, stride, dilation=1):
    depthwise = nn.Conv2d(c, c, k, stride, dilation * (k // 2), dilation, groups=c, bias=False)
    return [nn.ReLU(), depthwise, nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c, affine=False)]


class Reduce(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.even, self.odd = (nn.Conv2d(c, c // 2, 1, stride=2, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(c, affine=False)

    def forward(self, x):
        x = F.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))


OPS = {
    "sep_conv_3x3": lambda c, s: nn.Sequential(*conv(c, 3, s), *conv(c, 3, 1)),
    "sep_conv_5x5": lambda c, s: nn.Sequential(*conv(c, 5, s), *conv(c, 5, 1)),
    "dil_conv_3x3": lambda c, s: nn.Sequential(*conv(c, 3, s, 2)),
    "dil_conv_5x5": lambda c, s: nn.Sequential(*conv(c, 5, s, 2)),
    "max_pool_3x3": lambda c, s: nn.Sequential(nn.MaxPool2d(3, s, 1), nn.BatchNorm2d(c, affine=False)),
    "avg_pool_3x3": lambda c, s: nn.Sequential(
        nn.AvgPool2d(3, s, 1, count_include_pad=False), nn.BatchNorm2d(c, affine=False)
    ),
    "skip_connect": lambda c, s: Reduce(c) if s == 2 else nn.Identity(),
    "preprocess": lambda c, s: nn.Sequential(
        nn.ReLU(), nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c, affine=False)
    ),
}


class Work:
    def __init__(self, op, x):
        self.op, self.x = op, x
        self.gate = torch.ones((), device=DEVICE)
        self.gradient = None

    def forward(self):
        self.given = self.x.detach().requires_grad_()
        with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=False):
            self.output = self.op(self.given) * 1
        if self.gradient is None:
            self.gradient = torch.randn_like(self.output)

    def backward(self):
        output, given, self.output, self.given = self.output, self.given, None, None
        self.found = torch.autograd.grad(output, [given, *self.op.parameters()], self.gradient)


def record(work, pool):
    if not GPU:
        return work
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(STREAM):
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            try:
                graph.capture_end()
            except RuntimeError as second:
                print(f"    capture_end after it: {str(second).splitlines()[0]}")
            mend(pool)
            raise
        graph.capture_end()
    return graph.replay


def mend(pool):
    """What torch 2.11 leaves undone when a capture fails: the allocator and the random generator take it for running."""
    try:
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
    except RuntimeError as error:
        print(f"    nothing to end: {str(error).splitlines()[0]}")
    graph, place = torch.cuda.CUDAGraph(), torch.zeros(1, device=DEVICE)
    with torch.cuda.stream(STREAM):
        graph.capture_begin(capture_error_mode="thread_local")
        place.add_(1)
        graph.capture_end()


def microseconds(replay, times=30):
    if not GPU:
        return 0.0
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(STREAM):
        replay()
        begin.record()
        for _ in range(times):
            replay()
        end.record()
    torch.cuda.synchronize()
    return 1000 * begin.elapsed_time(end) / times


def reserved():
    return torch.cuda.memory_reserved() / 2**20 if GPU else 0.0


def row(name, c, size, stride, layout, kept):
    op = OPS[name](c, stride).to(DEVICE, memory_format=layout).train()
    x = torch.randn(BATCH, c, size, size, device=DEVICE).to(torch.bfloat16, memory_format=layout)
    work, pool = Work(op, x), torch.cuda.graph_pool_handle() if GPU else None
    if GPU:
        STREAM.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(STREAM) if GPU else torch.enable_grad():
        work.forward(), work.backward()
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    before = reserved()
    forward, backward = record(work.forward, pool), record(work.backward, pool)
    kept.append((forward, backward, work))  # as a search keeps them all
    return microseconds(lambda: (forward(), backward())), microseconds(forward), reserved() - before


def failure():
    pool = torch.cuda.graph_pool_handle()

    def returned():
        block = torch.empty(2**30, device=DEVICE)
        before = reserved()
        del block
        torch.cuda.empty_cache()
        return f"{before - reserved():.0f} MiB of 4096 are given back"

    print("before a failed recording:", returned())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(STREAM):
        graph.capture_begin(pool, capture_error_mode="thread_local")
        for broken in (STREAM.synchronize, graph.capture_end):
            try:
                broken()
            except RuntimeError as error:
                print(f"  {type(error).__name__}: {str(error).splitlines()[0]}")
    print("after it:", returned())
    try:
        torch.rand(4, device=DEVICE)
    except RuntimeError as error:
        print(f"  random numbers after it: {str(error).splitlines()[0]}")
    mend(pool)
    print("mended:", returned(), float(torch.rand(4, device=DEVICE).sum()))


if __name__ == "__main__":
    print(torch.__version__, torch.cuda.get_device_name() if GPU else "no GPU", torch.backends.cudnn.version())
    for benchmark in (True, False):
        torch.backends.cudnn.benchmark = benchmark
        for layout in (torch.channels_last, torch.contiguous_format):
            kept, began = [], time.perf_counter()
            for c, size in ((16, 32), (32, 16), (64, 8)):
                for name in OPS:
                    for stride in (1, 2) if size == 32 else (1,):
                        what = f"benchmark={benchmark!s:5} {str(layout)[6:]:17} {c}x{size} stride {stride} {name:12}"
                        try:
                            both, forward, mib = row(name, c, size, stride, layout, kept)
                            print(
                                f"{what} forward {forward:7.1f} backward {both - forward:7.1f} MiB {mib:6.0f}",
                                flush=True,
                            )
                        except Exception as error:
                            print(f"{what} {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            print(f"reserved {reserved():.0f} MiB, {time.perf_counter() - began:.1f} s")
    if GPU:
        failure()
