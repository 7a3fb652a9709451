"""Counts the operators and the transfers to the host in steps of a search and of its floor."""

import warnings

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from step_bench.bench import Bench


class Operators(TorchDispatchMode):
    """Counts the operators that are dispatched inside, by name, with backward passes.

    Views and allocations cost almost nothing, but are counted too. `detach` is not: how often autograd calls it differs
    between releases of torch.
    """

    def __init__(self):
        super().__init__()
        self.counts = {}

    @property
    def total(self):
        return sum(self.counts.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        if name != "aten.detach":
            self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


class HostTransfers(TorchFunctionMode):
    """Counts the calls inside that make the host wait for numbers on the device, for any device."""

    NAMES = frozenset(
        (
            "item",
            "tolist",
            "cpu",
            "numpy",
            "__bool__",
            "__float__",
            "__int__",
            "__index__",
            "equal",
            "nonzero",
            "unique",
        )
    )

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.NAMES:
            self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))


def counted(step, *arguments):
    """Returns the operators and host transfers of a step."""
    with Operators() as operators, HostTransfers() as transfers:
        step(*arguments)
    return operators, transfers


def counts(overrides):
    bench = Bench(overrides)
    found = {}
    bench.record()
    bench.search_times(bench.next_batches()[0])
    pair, _ = bench.next_batches()
    floors = [bench.floor(chosen) for chosen in bench.coming()]
    searcher, tau = bench.searcher, bench.tau
    for name, floor, plain, step, arguments in (
        ("weight", floors[0], floors[0].weight_step, searcher.weight_step, (pair[0], tau)),
        ("architecture", floors[1], floors[1].arch_step, searcher.arch_step, (pair[1], pair[0], tau)),
    ):
        if name == "architecture":
            floor.prepare_arch()
        operators, transfers = counted(step, *arguments)
        found[name] = {
            "operators": operators.total,
            "floor_operators": counted(plain, arguments[0])[0].total,
            "host_transfers": synchronisations(step, *arguments)
            if bench.device.type == "cuda"
            else len(transfers.calls),
        }
    return found


def synchronisations(step, *arguments):
    """Returns how often a step on a GPU waits for the GPU, as counted by CUDA."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
