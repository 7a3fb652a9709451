"""Writes HTML pages of runs, each in one file. Only reads the files of runs; imports neither torch nor hydra."""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {"report": "page"},
)
