"""Writes the files of a run: checkpoints, metrics, the manifest, and the locks that protect them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
