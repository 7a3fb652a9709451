"""Genotypes by name: the published ones of every space."""

from nas.errors import GenotypeError
from nas.genotype import Genotype
from nas.spaces import darts

PUBLISHED: dict[str, Genotype] = {**darts.PUBLISHED}


def resolve(name_or_path: str) -> Genotype:
    """The genotype of a published name or a file. Raises GenotypeError, listing the names, if it is neither."""
    if name_or_path in PUBLISHED:
        return PUBLISHED[name_or_path]
    try:
        return Genotype.load(name_or_path)
    except GenotypeError as error:
        if name_or_path.endswith(".json") or "/" in name_or_path:
            raise
        raise GenotypeError(
            f"{name_or_path!r} is neither a file nor a published genotype",
            fix=f"give a genotype.json, or one of {', '.join(PUBLISHED)}",
        ) from error
