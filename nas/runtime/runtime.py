"""The device, threads, determinism and memory format of a run."""

import hashlib
import itertools
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.errors import ConfigError, DeviceError
from nas.runtime import distributed
from nas.runtime.allocator import keep_freed_memory
from nas.runtime.nonfinite import Guard, OnNonfinite
from nas.runtime.precision import Precision
from nas.runtime.rng import seed_everything

THREADS = 4096  # more than any machine has; each would be started
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Runtime:
    """The device of a run and the settings of its computation.

    device: ``auto`` (a GPU if the machine has one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or a torch.device. With
    ``auto`` and ``cuda`` each of several processes on a machine gets its own GPU.
    threads: torch's threads on the CPU; None keeps torch's own choice. deterministic: use only algorithms that give the
    same result every time. memory_format: ``channels_last`` or ``contiguous``. precision: see `Precision`; reported
    scores of a network are measured in fp32. compile: the back end of torch.compile for retraining, e.g. ``inductor``;
    None for none. A supernet is never compiled, because its path changes in every step and each path would be compiled
    again. cuda_graphs: replay a supernet's operations as CUDA graphs, see `nas.methods.cuda_graphs`; has an effect only
    on a GPU in a single process; ``composed`` launches all that a pass replays at once.
    triton: with cuda_graphs, record some operations as Triton kernels, see `nas.methods.cuda_graphs.faster_ops`.
    profile: record a few steps of search and retraining, see `nas.training.step_profile`.
    on_nonfinite, max_skipped: see `OnNonfinite`.
    Raises DeviceError if the machine lacks the device, ConfigError for any other wrong value.
    """

    def __init__(
        self,
        *,
        device: str | torch.device = "auto",
        threads: int | None = None,
        deterministic: bool = True,
        memory_format: str = "channels_last",
        precision: str = "fp32",
        compile: str | None = None,
        cuda_graphs: bool | str = False,
        triton: bool = False,
        on_nonfinite: str = "stop",
        max_skipped: int = 10,
        profile: bool = False,
    ) -> None:
        device = str(device)
        if memory_format not in MEMORY_FORMATS:
            raise ConfigError(
                f"runtime.memory_format must be one of {', '.join(MEMORY_FORMATS)}, got {memory_format!r}",
                fix="set runtime.memory_format=channels_last",
            )
        if threads is not None and not 1 <= threads <= THREADS:
            bound = "at least 1" if threads < 1 else f"at most {THREADS}"
            raise ConfigError(
                f"runtime.threads must be {bound}, got {threads}", fix="set runtime.threads=null for torch's choice"
            )
        self._given: dict[str, object] = {"device": device, "memory_format": memory_format, "precision": precision}
        self._given |= {"on_nonfinite": on_nonfinite, "max_skipped": max_skipped}
        self.device = find_device(device)
        self.threads = threads
        self.deterministic = deterministic
        self.memory_format = MEMORY_FORMATS[memory_format]
        self.precision = Precision(precision, self.device.type)
        self.on_nonfinite = OnNonfinite(on_nonfinite, max_skipped)
        # The list is read only if `compile` is set: importing the compiler takes a second.
        if compile is not None and compile not in (backends := torch.compiler.list_backends(exclude_tags=())):
            raise ConfigError(
                f"runtime.compile must be null or a back end of torch.compile, one of {', '.join(backends)}, "
                f"got {compile!r}",
                fix="set runtime.compile=inductor",
            )
        self.compile = compile
        if not isinstance(cuda_graphs, bool) and cuda_graphs != "composed":
            raise ConfigError(
                f"runtime.cuda_graphs must be true, false or composed, got {cuda_graphs!r}",
                fix="set runtime.cuda_graphs=true",
            )
        # Why nothing is replayed although that is asked for; empty if there is no reason.
        self.no_cuda_graphs = ""
        if cuda_graphs and self.device.type != "cuda":
            self.no_cuda_graphs = f"needs a GPU, got {self.device.type}"
        elif cuda_graphs and distributed.world() > 1:
            self.no_cuda_graphs = f"needs a process that is alone, got {distributed.world()}"
        self.cuda_graphs = False if self.no_cuda_graphs else cuda_graphs
        if triton and not cuda_graphs:
            raise ConfigError(
                "runtime.triton needs runtime.cuda_graphs, as only recorded operations run by Triton",
                fix="set runtime.cuda_graphs=true",
            )
        self.triton = triton
        self.profile = profile

    def described(self) -> dict[str, object]:
        """The arguments it was made with."""
        names = ("threads", "deterministic", "compile", "cuda_graphs", "triton", "profile")
        return {**self._given, **{name: getattr(self, name) for name in names}}

    def start(self, seed: int) -> None:
        """Sets up the process: threads, determinism, and the seed of every global generator."""
        keep_freed_memory()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.deterministic:
            # cuBLAS is reproducible only with this variable, and only if it is set before cuBLAS's first call.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
        # Otherwise torch writes NaN into every result before an operation fills it. This takes a tenth of a step, and
        # helps only code that reads memory it has not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        # Not where steps are recorded, which excludes trying: each shape of each candidate would be tried for nothing,
        # for a minute in the DARTS space.
        torch.backends.cudnn.benchmark = not self.deterministic and not self.cuda_graphs
        if self.device.index is not None and self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # else every process would take memory of the first GPU as well
        seed_everything(seed)

    def place(self, model: nn.Module) -> nn.Module:
        """Moves the model to the device and the memory format, and returns the model. Raises as `refuse_meta` does."""
        refuse_meta(model)
        model.to(self.device)
        for tensor in (*model.parameters(), *model.buffers()):
            # Not Module.to(), which refuses the five dimensions of a 3-D convolution.
            if tensor.ndim == 4:
                tensor.data = tensor.data.to(memory_format=self.memory_format)
        return model

    def compiled(self, network: nn.Module) -> Callable[..., Any]:
        """Returns the network, or its compiled forward pass if `compile` is set. Both share the network's weights."""
        if self.compile is None:
            return network
        compiled: Callable[..., Any] = torch.compile(network, backend=self.compile)
        return compiled

    def guard(self) -> Guard:
        """Returns a new guard for a stage."""
        return Guard(self.on_nonfinite, late=self.device.type != "cpu")

    def peak_memory(self) -> int:
        return peak_memory(self.device)

    def describe(self) -> str:
        return describe(self.device)


def refuse_meta(model: nn.Module) -> None:
    """Raises ConfigError for a model that has tensors without numbers."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ConfigError(
                f"{name} of the model is on torch's meta device, so it has no numbers",
                fix="build the model on the CPU, or load its weights before",
            )


def peak_memory(device: torch.device) -> int:
    """The peak memory in bytes: allocated on a GPU, or resident in this process on a CPU.

    Returns 0 if the system does not report the peak.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not every system has this module
    except ImportError:
        return 0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024  # Linux counts in KiB


def describe(device: torch.device) -> str:
    """The name of the device, for manifests and tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {processor()}, {threads} thread{'s' * (threads > 1)}"


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()  # on Linux the platform module returns no name
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def device_of(module: nn.Module) -> torch.device:
    """Returns the device of the module's first tensor; the CPU for a module without tensors."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def synchronise(device: torch.device) -> None:
    """Waits until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def available_devices() -> list[str]:
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *devices, *(["mps"] if torch.backends.mps.is_available() else [])]


def find_device(name: str) -> torch.device:
    """Returns the device; ``auto`` takes the first GPU, or the CPU without one. Raises DeviceError if it is missing."""
    available = available_devices()
    if distributed.world() > 1 and name != "cpu":
        return own_gpu(name)
    if name == "auto":
        return torch.device(next((device for device in available if device != "cpu"), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    full_name = "cuda:0" if name == "cuda" else name
    if device is None or full_name not in available:
        raise DeviceError(
            f"device {name!r} is not on this machine, which has {', '.join(available)}",
            fix="set runtime.device=auto",
        )
    return device


def own_gpu(name: str) -> torch.device:
    """The GPU of this process, one of several processes. For ``auto`` the CPU if the machine has no GPU.

    Raises DeviceError if this machine has fewer GPUs than processes, or if `name` has a number.
    """
    gpus, number = torch.cuda.device_count(), distributed.number_on_machine()
    if name == "auto" and not gpus:
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise DeviceError(
            f"device {name!r} cannot be shared by {distributed.world()} processes, expected auto, cuda or cpu",
            fix="set runtime.device=auto, which gives each process its own GPU",
        )
    if number >= gpus:
        raise DeviceError(
            f"this machine has {gpus} GPUs, expected one for each process, got process {number + 1}",
            fix="set runtime.device=cpu, or start as many processes as there are GPUs",
        )
    return torch.device("cuda", number)


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose of a run, independent of the seeds for other purposes and of other runs."""
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def seed_of_process(seed: int, purpose: str) -> int:
    """Returns `seed` in the first process, and a different seed in each other process."""
    number = distributed.share().index
    return derived_seed(seed, f"{purpose} of process {number}") if number else seed


def seed_layers(seed: int) -> None:
    """Seeds the global generators of each process differently, so that its layers draw their own numbers.

    Called after the model is built, as all processes must build the same model. The first process keeps its state, so
    a single process gives the same bits as without this call.
    """
    if not distributed.first():
        seed_everything(seed_of_process(seed, "layers"))
