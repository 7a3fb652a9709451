"""The mechanism of a search: choices, gates, architecture parameters and genotypes."""

from nas.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ArchParams": "arch_params",
        "Choice": "choice",
        "choices": "choice",
        "freeze": "freezing",
        "gates": "choice",
        "Genotype": "genotype",
    },
)
