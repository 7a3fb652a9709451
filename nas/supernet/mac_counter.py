"""Counts the multiply-accumulates that a model runs in its forward pass."""

from types import TracebackType

from torch.utils.flop_counter import FlopCounterMode


class NoModules:
    """Replaces torch's module tracker, which fails in a model that differentiates in its forward pass."""

    parents = ("Global",)

    def __enter__(self) -> "NoModules":
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        return None


class MacCounter:
    """A context manager that counts the multiply-accumulates of convolutions and matrix products.

    `total` is the count inside the context. torch's formulas count two operations for each multiply-accumulate.
    """

    def __init__(self) -> None:
        self._mode = FlopCounterMode(display=False)
        self._mode.mod_tracker = NoModules()  # type: ignore[assignment]

    @property
    def total(self) -> int:
        return self._mode.get_total_flops() // 2

    def __enter__(self) -> "MacCounter":
        self._mode.__enter__()
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._mode.__exit__(*exception)
