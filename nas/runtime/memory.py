"""The memory that a process can use, and sizes of memory as text."""

import os
from pathlib import Path

import torch


def available_memory(device: torch.device) -> int | None:
    """The bytes that this process can use on the device, including the bytes that it already uses.

    On a GPU: the memory that no other process has taken. On Linux: the available memory, or the limit of the control
    group if lower. Returns None on other systems.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        limits = [int(fields["MemAvailable"].split()[0]) * 1024 + resident]
        limits += [
            int(text)
            for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
            if Path(path).exists() and (text := Path(path).read_text().strip()).isdigit()
        ]
    except (OSError, ValueError, LookupError):
        return None
    return min(limits)


def size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
