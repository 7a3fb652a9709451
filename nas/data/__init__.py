"""Data: a family (`digits`, `image_folder`, ...) loads a `DataBundle`; a `Loader` makes batches of one of its splits.

Importing this package imports torch and nothing heavier: what only one family needs is imported by its `load`.
"""

from nas.data.bundle import DataBundle, Split
from nas.data.loader import Loader, search_batches
from nas.data.spec import DataSpec, ImageSpec
from nas.data.transforms import Augment

__all__ = ["Augment", "DataBundle", "DataSpec", "ImageSpec", "Loader", "Split", "search_batches"]
