"""The mechanism of a search: choices, gates, architecture parameters and genotypes."""

from typing import Any

from nas.lazy import lazy

_public = {
    "ArchParams": "arch_params",
    "Choice": "choice",
    "choices": "choice",
    "freeze": "freezing",
    "gates": "choice",
    "Genotype": "genotype",
}
__all__ = sorted(_public)


def __getattr__(name: str) -> Any:
    return lazy(__name__, _public, name)


def __dir__() -> list[str]:
    return __all__
