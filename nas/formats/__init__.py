"""The file formats of an exported network, one format per module."""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "BFloat16": "bfloat16",
        "Onnx": "onnx",
        "Program": "program",
        "Standalone": "standalone",
        "Weights": "weights",
    },
)
