"""Where and how a run computes: device, threads, determinism, memory format."""

import hashlib
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

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Runtime:
    """device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``. Of several processes on a
    machine each gets a GPU of its own by ``auto`` and ``cuda``.

    threads: of torch on the CPU; None leaves torch's own choice. deterministic: only algorithms that give the same
    result every time. memory_format: ``channels_last`` or ``contiguous``. precision: see `Precision`; what is reported
    of a network is measured in fp32. compile: the back end of torch.compile for retraining, e.g. ``inductor``; None
    for none. A supernet is not compiled: its path changes every step, and each would be compiled anew. cuda_graphs:
    replay a supernet's operations as CUDA graphs, see `nas.methods.cuda_graphs`; in a process that has a GPU and is
    the only one. profile: record a few steps of search and retraining, see `nas.training.step_profile`.
    on_nonfinite, max_skipped: see `OnNonfinite`.
    Raises DeviceError for a device that is not there, ConfigError for anything else.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        threads: int | None = None,
        deterministic: bool = True,
        memory_format: str = "channels_last",
        precision: str = "fp32",
        compile: str | None = None,
        cuda_graphs: bool = False,
        on_nonfinite: str = "stop",
        max_skipped: int = 10,
        profile: bool = False,
    ) -> None:
        if memory_format not in MEMORY_FORMATS:
            raise ConfigError(
                f"runtime.memory_format must be one of {', '.join(MEMORY_FORMATS)}, got {memory_format!r}",
                fix="set runtime.memory_format=channels_last",
            )
        if threads is not None and threads < 1:
            raise ConfigError(
                f"runtime.threads must be at least 1, got {threads}", fix="set runtime.threads=null for torch's choice"
            )
        self._given: dict[str, object] = {"device": device, "memory_format": memory_format, "precision": precision}
        self._given |= {"on_nonfinite": on_nonfinite, "max_skipped": max_skipped}
        self.device = find_device(device)
        self.threads = threads
        self.deterministic = deterministic
        self.memory_format = MEMORY_FORMATS[memory_format]
        self.precision = Precision(precision, self.device.type)
        self.on_nonfinite = OnNonfinite(on_nonfinite, max_skipped)
        # Asked only if one is set: the compiler takes a second to import.
        if compile is not None and compile not in (backends := torch.compiler.list_backends(exclude_tags=())):
            raise ConfigError(
                f"runtime.compile must be null or a back end of torch.compile, one of {', '.join(backends)}, "
                f"got {compile!r}",
                fix="set runtime.compile=inductor",
            )
        self.compile = compile
        self.cuda_graphs = cuda_graphs and self.device.type == "cuda" and distributed.world() == 1
        self.profile = profile

    def described(self) -> dict[str, object]:
        """The arguments it was made with."""
        names = ("threads", "deterministic", "compile", "cuda_graphs", "profile")
        return {**self._given, **{name: getattr(self, name) for name in names}}

    def start(self, seed: int) -> None:
        """Set the process up: threads, determinism, and the seed of every global generator."""
        keep_freed_memory()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.deterministic:
            # cuBLAS is reproducible only with this, and only if set before its first call.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
        # Or torch writes NaN into every result before an operation fills it: a tenth of a step, for code that reads
        # memory it has not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = not self.deterministic
        if self.device.index is not None and self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # or every process would take memory of the first GPU as well
        seed_everything(seed)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory format."""
        model.to(self.device)
        for tensor in (*model.parameters(), *model.buffers()):
            # Module.to() would refuse the five dimensions of a 3-D convolution.
            if tensor.ndim == 4:
                tensor.data = tensor.data.to(memory_format=self.memory_format)
        return model

    def compiled(self, network: nn.Module) -> Callable[..., Any]:
        """The forward pass of a network, compiled if that is asked for. Its weights stay the network's."""
        if self.compile is None:
            return network
        compiled: Callable[..., Any] = torch.compile(network, backend=self.compile)
        return compiled

    def guard(self) -> Guard:
        """A fresh one, for a stage."""
        return Guard(self.on_nonfinite, late=self.device.type != "cpu")

    def peak_memory(self) -> int:
        return peak_memory(self.device)

    def describe(self) -> str:
        return describe(self.device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a GPU, or resident for this process on a CPU; 0 where the system does not
    say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # which not every system has
    except ImportError:
        return 0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024  # Linux counts in KiB


def describe(device: torch.device) -> str:
    """The device in words, for manifests and tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()  # Linux, where the platform module knows no name
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def available_devices() -> list[str]:
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *devices, *(["mps"] if torch.backends.mps.is_available() else [])]


def find_device(name: str) -> torch.device:
    """Raises DeviceError unless the device is there; ``auto`` takes the first GPU, else the CPU."""
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
    """That of this process, one of several; for ``auto`` the CPU where there is none. Raises DeviceError if there are
    fewer GPUs than processes on this machine, or one was asked for by its number."""
    gpus, number = torch.cuda.device_count(), distributed.number_on_machine()
    if name == "auto" and not gpus:
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise DeviceError(
            f"device {name!r} cannot be shared by {distributed.world()} processes, expected auto, cuda or cpu",
            fix="set runtime.device=auto, by which each gets a GPU of its own",
        )
    if number >= gpus:
        raise DeviceError(
            f"this machine has {gpus} GPUs, expected one for each process, got process {number + 1}",
            fix="set runtime.device=cpu, or start as many processes as there are GPUs",
        )
    return torch.device("cuda", number)


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose of a run, unrelated to those of its other purposes and of other runs."""
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def seed_of_process(seed: int, purpose: str) -> int:
    """The seed itself in the first process, and in each of the others another one."""
    number = distributed.share().index
    return derived_seed(seed, f"{purpose} of process {number}") if number else seed


def seed_layers(seed: int) -> None:
    """Let the layers of each process draw random numbers of their own from here on.

    To be called when the model is built, for which all processes draw alike. The first process goes on as it was, so
    one process gives the same bits as without this.
    """
    if not distributed.first():
        seed_everything(seed_of_process(seed, "layers"))
