"""Estimates the time and memory of a search from one measured step."""

from dataclasses import dataclass

import torch

from nas.runtime.memory import size

SHORT = 0.9  # of the available memory; the search warns if it needs more


@dataclass(frozen=True)
class Measured:
    """The measured time and memory of one iteration, which is a weight step and an architecture step.

    seconds: the time of the iteration. peak: the peak memory in bytes, of the device, or of the process on a CPU.
    """

    seconds: float
    peak: int
    device: torch.device

    def line(self, *, epochs: int, steps: int) -> str:
        """The estimate as one line of text."""
        kind = "of the GPU's memory" if self.device.type == "cuda" else "of memory, torch included"
        return (
            f"estimate, by one step on trial: the search takes about {duration(self.seconds * epochs * steps)} "
            f"({epochs} x {steps} steps of {self.seconds:.3g} s, data and scoring not counted) and {size(self.peak)} "
            f"{kind}"
        )

    def warning(self, available: int | None) -> str | None:
        """The warning if memory may be short, else None. available: bytes for this process, None if unknown."""
        if available is None or self.peak <= SHORT * available:
            return None
        return (
            f"memory may be short, by an estimate: a step took {size(self.peak)} of {size(available)}; lower "
            "search.batch_size if the search fails for it"
        )


def duration(seconds: float) -> str:
    """The duration as text, in a readable unit."""
    for limit, unit, factor in ((120, "s", 1), (7200, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / factor:.2g} {unit}" if seconds / factor < 10 else f"{seconds / factor:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
