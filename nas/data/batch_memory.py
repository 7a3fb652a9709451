"""A batch in an anonymous memory file: a process writes it, another maps it without a copy."""

import mmap
import os
import tempfile
from typing import Any

import torch

from nas.data.inputs import Batch, each

ALIGNMENT = 64  # bytes: the tensors of a memory file begin at multiples of this


def packed(batch: Batch) -> tuple[list[Any], int]:
    """Writes a batch to a memory file. Returns where each tensor lies in it, and the file's descriptor."""
    inputs, targets = batch
    layout: list[Any] = [isinstance(inputs, tuple)]
    with _memory_file() as file:
        for tensor in (*each(inputs), targets):
            start = -(-file.tell() // ALIGNMENT) * ALIGNMENT
            file.seek(start)
            content = tensor.detach().contiguous().view(-1).view(torch.uint8)
            file.write(content.numpy().data)
            layout.append((start, len(content), tensor.dtype, tuple(tensor.shape)))
        if not file.tell():
            file.write(b"\0")  # an empty file cannot be mapped
        file.flush()
        return layout, os.dup(file.fileno())


def unpacked(layout: list[Any], descriptor: int) -> Batch:
    """The batch of a memory file, whose descriptor is closed. layout: as `packed` returned it."""
    try:
        memory = mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)
    several, *parts = layout
    content = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory alive
    *inputs, targets = (
        content[start : start + size].view(dtype).view(shape) if size else torch.empty(shape, dtype=dtype)
        for start, size, dtype, shape in parts
    )
    return tuple(inputs) if several else inputs[0], targets


def _memory_file() -> Any:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("nas-batch", os.MFD_CLOEXEC), "wb")
    return tempfile.TemporaryFile()
