"""Device, processes, precision, seeds, nonfinite numbers and user functions."""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Runtime": "runtime",
    },
)
