"""Data sets. A family (`digits`, `image_folder`, ...) loads a `DataBundle`; a `Loader` makes batches of one split.

Importing this package imports only torch. `load` imports what only that family needs.
"""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DataBundle": "bundle",
        "Split": "bundle",
        "Custom": "custom",
        "Digits": "digits",
        "ImageFolder": "image_folder",
        "Loader": "loader",
        "search_batches": "loader",
        "RandAugment": "policy",
        "TrivialAugment": "policy",
        "DataSpec": "spec",
        "ImageSpec": "spec",
        "Synthetic": "synthetic",
        "Cifar10": "torchvision_sets",
        "Cifar100": "torchvision_sets",
        "FashionMnist": "torchvision_sets",
        "SVHN": "torchvision_sets",
        "Augment": "transforms",
    },
)
