"""Writes HTML pages of runs, each in one file. Only reads the files of runs; imports neither torch nor hydra."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
