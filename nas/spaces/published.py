"""Genotypes as people have them: by name, as a file, as a text from a paper, as an index of a benchmark."""

import os.path
import re

from nas.errors import GenotypeError
from nas.spaces import darts, darts_notation, nas_bench_201, nas_bench_201_notation
from nas.spaces.nas_bench_201_table import NasBench201Table
from nas.spaces.notation import Scanner
from nas.supernet.genotype import Genotype, read_text

PUBLISHED: dict[str, Genotype] = {**darts.PUBLISHED}

# space -> the notation that its genotypes circulate in
NOTATIONS = {
    darts.Darts.name: darts_notation,
    nas_bench_201.NasBench201.name: nas_bench_201_notation,
}


def to_text(genotype: Genotype) -> str:
    """The published text form. Raises GenotypeError where the space has none, or none for this genotype."""
    if genotype.space not in NOTATIONS:
        raise GenotypeError(
            f"genotypes of {genotype.space} have no published text form, only those of {', '.join(NOTATIONS)}",
            fix="keep its JSON",
        )
    return NOTATIONS[genotype.space].to_text(genotype)


def from_text(text: str, *, source: str = "the genotype") -> Genotype:
    """A genotype from JSON or any published notation. Raises GenotypeError, naming `source` and the position, for
    anything else; nothing in the text is run."""
    begun = text.lstrip()
    if begun.startswith("{"):
        return Genotype.from_json(text, source=source)
    for notation in NOTATIONS.values():
        if begun.startswith(notation.OPENING):
            return notation.from_text(text, source=source)
    example = " or as ".join(notation.EXAMPLE for notation in NOTATIONS.values())
    openings = " or ".join(repr(notation.OPENING) for notation in NOTATIONS.values())
    raise Scanner(text, spaces=False, source=source, example=example).error(f"'{{' (JSON) or {openings}")


def resolve(genotype: str, *, benchmark: NasBench201Table | None = None) -> Genotype:
    """The genotype that a user means: a published name, a file of JSON or a published notation, such a text itself, or
    an index of the benchmark. Raises GenotypeError if it is none of them."""
    if genotype in PUBLISHED:
        return PUBLISHED[genotype]
    if re.fullmatch("[0-9]{1,9}", genotype):
        if benchmark is None:
            raise GenotypeError(
                f"the genotype {genotype} is an index, and there is no table to look it up in",
                fix="add benchmark=nas_bench_201 benchmark.table=<csv>",
            )
        return benchmark.genotype(int(genotype))
    # os.path's isfile, as Path's would raise for a text that cannot be a path at all.
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
