"""Search spaces. Each published space has its own file."""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
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
    },
)
