"""Public names of a package that are imported when they are first used."""

import importlib
from collections.abc import Mapping
from typing import Any


def lazy(package: str, public: Mapping[str, str], name: str) -> Any:
    """What the `__getattr__` of a package returns (PEP 562).

    package: its `__name__`. public: name -> the module of the package that defines the name.
    A name costs its import only where it is used: torch alone takes a second. Raises AttributeError for other names.
    """
    if name not in public:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{package}.{public[name]}"), name)
