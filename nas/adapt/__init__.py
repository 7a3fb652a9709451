"""Choices put into networks that already have weights, and derivations that hold a cap."""

from typing import Any

from nas.lazy import lazy

# Name -> the module that defines it.
_public = {
    "FileTimes": "file_times",
    "Inserted": "inserted",
    "Insertion": "insertion",
    "Place": "insertion",
    "Teacher": "teacher",
    "insert": "insertion",
    "insertions": "insertion",
    "depthwise": "makers",
    "factorised": "makers",
    "fewer_heads": "heads",
    "narrower": "narrowing",
    "other": "makers",
    "skip": "makers",
    "smaller_kernel": "makers",
}
__all__ = sorted(_public)


def __getattr__(name: str) -> Any:
    return lazy("nas.adapt", _public, name)


def __dir__() -> list[str]:
    return __all__
