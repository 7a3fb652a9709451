"""Finds a genotype from a published name, a file, a text from a paper, or an index of a benchmark."""

import os.path
import re
from pathlib import Path

from nas.errors import GenotypeError
from nas.settings.arguments import path_of
from nas.spaces import darts, darts_notation, nas_bench_201, nas_bench_201_notation
from nas.spaces.nas_bench_201_table import NasBench201Table
from nas.spaces.notation import Scanner
from nas.supernet.genotype import Genotype, read_text

PUBLISHED: dict[str, Genotype] = {**darts.PUBLISHED}

# space -> the module that reads and writes the space's published notation
NOTATIONS = {
    darts.Darts.name: darts_notation,
    nas_bench_201.NasBench201.name: nas_bench_201_notation,
}


def to_text(genotype: Genotype) -> str:
    """The genotype in the published notation. Raises GenotypeError if the space has no notation, or if the notation
    cannot express the genotype."""
    if genotype.space not in NOTATIONS:
        raise GenotypeError(
            f"genotypes of {genotype.space} have no published text form, only those of {', '.join(NOTATIONS)}",
            fix="keep its JSON",
        )
    return NOTATIONS[genotype.space].to_text(genotype)


def from_text(text: str, *, source: str = "the genotype") -> Genotype:
    """A genotype from JSON or any published notation. Runs nothing in the text.

    Raises GenotypeError, naming `source` and the position, for any other text.
    """
    begun = text.lstrip()
    if begun.startswith("{"):
        return Genotype.from_json(text, source=source)
    for notation in NOTATIONS.values():
        if begun.startswith(notation.OPENING):
            return notation.from_text(text, source=source)
    example = " or as ".join(notation.EXAMPLE for notation in NOTATIONS.values())
    openings = " or ".join(repr(notation.OPENING) for notation in NOTATIONS.values())
    raise Scanner(text, spaces=False, source=source, example=example).error(f"'{{' (JSON) or {openings}")


def resolve(genotype: str | Path, *, benchmark: NasBench201Table | None = None) -> Genotype:
    """Returns the genotype that a user named.

    genotype: a published name, the path of a file with JSON or a published notation, such a text itself, or an index
    of the benchmark. Raises GenotypeError for anything else.
    """
    if not isinstance(genotype, str):
        genotype = str(path_of(genotype, "genotype"))
    if genotype in PUBLISHED:
        return PUBLISHED[genotype]
    if re.fullmatch("[0-9]{1,9}", genotype):
        if benchmark is None:
            raise GenotypeError(
                f"the genotype {genotype} is a benchmark index, but no benchmark table was given",
                fix="add benchmark=nas_bench_201 benchmark.table=<csv>",
            )
        return benchmark.genotype(int(genotype))
    # os.path.isfile returns False for a text that cannot be a path; Path.is_file would raise.
    if not os.path.isfile(genotype) and any(mark in genotype for mark in "([{|'\"\n"):
        return from_text(genotype)
    try:
        text = read_text(genotype)
    except GenotypeError as error:
        if genotype.endswith(".json") or "/" in genotype:
            raise
        raise GenotypeError(
            f"{genotype[:60]!r} is neither a file nor a published genotype",
            fix=f"give a genotype.json, a genotype's text, or one of {', '.join(PUBLISHED)}",
        ) from error
    return from_text(text, source=genotype)
