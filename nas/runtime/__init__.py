"""Device, processes, precision, seeds, nonfinite numbers and user functions."""

from typing import Any

from nas.lazy import lazy

_public = {
    "Runtime": "runtime",
}
__all__ = sorted(_public)


def __getattr__(name: str) -> Any:
    return lazy(__name__, _public, name)


def __dir__() -> list[str]:
    return __all__
