"""Pages that show runs: one self-contained HTML file. Reads files only; imports neither torch nor hydra."""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {"report": "page"},
)
