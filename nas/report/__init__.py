"""Pages that show what runs left: one self-contained HTML file. Reads files alone; imports neither torch nor hydra."""

from typing import Any

from nas.lazy import lazy

_public = {"report": "page"}
__all__ = sorted(_public)


def __getattr__(name: str) -> Any:
    return lazy(__name__, _public, name)


def __dir__() -> list[str]:
    return __all__
