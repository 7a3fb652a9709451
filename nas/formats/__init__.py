"""The file formats of an exported network, one format per module."""

from typing import Any

from nas.lazy import lazy

_public = {
    "BFloat16": "bfloat16",
    "Onnx": "onnx",
    "Program": "program",
    "Standalone": "standalone",
    "Weights": "weights",
}
__all__ = sorted(_public)


def __getattr__(name: str) -> Any:
    return lazy(__name__, _public, name)


def __dir__() -> list[str]:
    return __all__
