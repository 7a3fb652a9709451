"""How a run computes: device, processes, precision, seeds, numbers that are not finite, and functions of the user."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
