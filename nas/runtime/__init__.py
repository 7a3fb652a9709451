"""How a run computes: device, processes, precision, seeds, numbers that are not finite, and functions of the user."""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Runtime": "runtime",
    },
)
