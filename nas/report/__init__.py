"""Pages that show runs: one self-contained HTML file. Reads files only; imports neither torch nor hydra."""

from typing import Any

from nas.lazy import lazy

_public = {"report": "page"}
__all__ = sorted(_public)


def __getattr__(name: str) -> Any:
    return lazy(__name__, _public, name)


def __dir__() -> list[str]:
    return __all__
