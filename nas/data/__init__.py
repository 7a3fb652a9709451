"""Data sets. A family (`digits`, `image_folder`, ...) loads a `DataBundle`; a `Loader` makes batches of one split.

Importing this package imports only torch. `load` imports what only that family needs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
