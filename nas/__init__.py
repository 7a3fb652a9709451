"""Differentiable neural architecture search for PyTorch. Each step trains one sampled network."""

import lazy_loader

__version__ = "0.1.0"

# The names are in __init__.pyi, for type checkers and editors too. Importing this package takes no time: torch alone
# takes a second.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
