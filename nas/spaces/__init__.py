"""Search spaces. Each published space has its own file."""

from typing import Any

from nas.lazy import lazy

_public = {
    "Custom": "custom",
    "Darts": "darts",
    "DartsImageNet": "darts_imagenet",
    "EdgeOps": "edge_ops",
    "MBConv": "mbconv",
    "NasBench201": "nas_bench_201",
    "NasBench201Table": "nas_bench_201_table",
    "DilConv": "ops",
    "InvertedResidual": "ops",
    "Noise": "ops",
    "ReLUConvBN": "ops",
    "SearchNormalised": "ops",
    "SepConv": "ops",
    "Zero": "ops",
    "avg_pool": "ops",
    "max_pool": "ops",
    "skip_connect": "ops",
    "resolve": "published",
}
__all__ = sorted(_public)


def __getattr__(name: str) -> Any:
    return lazy(__name__, _public, name)


def __dir__() -> list[str]:
    return __all__
