"""Reads and writes the benchmark's notation of a NAS-Bench-201 cell (Dong & Yang 2020), one group of edges per node:

|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|
"""

import re

from nas.errors import GenotypeError
from nas.spaces.nas_bench_201 import NasBench201
from nas.spaces.notation import NAME, Scanner, check_space
from nas.supernet.genotype import Genotype

OPENING = "|"
EXAMPLE = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"


def from_text(text: str, *, source: str = "the genotype") -> Genotype:
    """Reads a cell of any number of nodes. Raises GenotypeError, naming `source` and the position, if the text is
    malformed. The space checks later whether the operations exist."""
    scanner = Scanner(text, spaces=False, source=source, example=EXAMPLE)
    chosen: dict[str, str | None] = {}
    node = 1
    while node == 1 or scanner.accept("+"):
        scanner.take("|")
        for edge_from in range(node):
            chosen[f"cell/{edge_from}-{node}"] = scanner.name()
            scanner.take(f"~{edge_from}|")
        node += 1
    scanner.end()
    return Genotype(NasBench201.name, chosen)


def to_text(genotype: Genotype) -> str:
    """Writes a cell. Raises GenotypeError for a genotype of another space, with a dropped edge, or with an operation
    whose name is not one word, as the notation cannot express these."""
    check_space(genotype, NasBench201.name)
    chosen = dict(genotype.choices)
    groups: list[str] = []
    while chosen or not groups:
        node = len(groups) + 1
        edges = [(chosen.pop(f"cell/{source}-{node}", None), source) for source in range(node)]
        for name, source in edges:
            if name is None or not re.fullmatch(NAME, name):
                raise GenotypeError(
                    f"the genotype has {name!r} on the edge cell/{source}-{node}, expected an operation on every edge "
                    "of a NAS-Bench-201 cell",
                    fix="derive it in space=nas_bench_201 with deriver=argmax, or keep its JSON",
                )
        groups.append("|" + "".join(f"{name}~{source}|" for name, source in edges))
    return "+".join(groups)
