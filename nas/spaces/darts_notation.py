"""Reads and writes the notation for genotypes of the DARTS space, from its authors' code (Liu et al. 2019):

    Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), reduce=[...], ...)

Each node has two (operation, source) pairs; the first node is 2. The reader accepts only genotypes of this space: two
different sources per node, all nodes concatenated. NASNet and AmoebaNet use the same notation, but break these rules.
"""

import re
from collections.abc import Callable

from nas.errors import GenotypeError
from nas.spaces.darts import Darts, published
from nas.spaces.notation import NAME, Scanner, check_space
from nas.supernet.genotype import Genotype

OPENING = "Genotype("
EXAMPLE = (
    "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))"
)


def from_text(text: str, *, source: str = "the genotype") -> Genotype:
    """Reads a genotype. Raises GenotypeError, naming `source` and the position, if the text is malformed.

    The `concat` entries may be lists or ranges. The space checks later whether the operations exist.
    """
    scanner = Scanner(text, spaces=True, source=source, example=EXAMPLE)
    scanner.take("Genotype")
    scanner.take("(")
    normal = _cell(scanner, "normal")
    scanner.take(",")
    position = scanner.position
    reduce = _cell(scanner, "reduce")
    if len(reduce) != len(normal):
        raise scanner.error(f"{len(normal)} pairs as in the normal cell instead of {len(reduce)}", position=position)
    scanner.accept(",")
    scanner.take(")")
    scanner.end()
    return published(normal, reduce)


def _cell(scanner: Scanner, kind: str) -> list[tuple[str, int]]:
    """Reads ``kind=[...], kind_concat=...`` and returns the (operation, source) pairs."""
    scanner.take(kind)
    scanner.take("=")
    pairs: list[tuple[str, int]] = []
    closing = _items(scanner, lambda: pairs.append(_pair(scanner, pairs)))
    if not pairs or len(pairs) % 2:
        raise scanner.error(f"two pairs for node {2 + len(pairs) // 2}", position=closing)
    scanner.take(",")
    scanner.take(f"{kind}_concat")
    scanner.take("=")
    _concat(scanner, range(2, 2 + len(pairs) // 2))
    return pairs


def _pair(scanner: Scanner, before: list[tuple[str, int]]) -> tuple[str, int]:
    """Reads ``('op', source)``. The source must come before the node and differ from the node's other source."""
    scanner.take("(")
    op = scanner.quoted_name()
    scanner.take(",")
    position = scanner.position
    source = scanner.number()
    node, second = 2 + len(before) // 2, len(before) % 2 == 1
    if source >= node:
        raise scanner.error(f"a node before node {node}", position=position)
    if second and source == before[-1][1]:
        raise scanner.error(f"another source than {source}, which node {node} has already", position=position)
    scanner.take(")")
    return op, source


def _concat(scanner: Scanner, nodes: range) -> None:
    """Reads ``[2, 3, 4, 5]`` or ``range(2, 6)``, which must name all nodes."""
    position = scanner.position
    if scanner.accept("range"):
        scanner.take("(")
        start = scanner.number()
        scanner.take(",")
        same = range(start, scanner.number()) == nodes
        scanner.take(")")
    else:
        listed: list[int] = []
        _items(scanner, lambda: listed.append(scanner.number()))
        same = listed == list(nodes)
    if not same:
        raise scanner.error(f"all nodes, range({nodes.start}, {nodes.stop})", position=position)


def _items(scanner: Scanner, item: Callable[[], None]) -> int:
    """Reads ``[item, item, ...]``; a comma may follow the last item. Returns the position of the closing bracket."""
    scanner.take("[")
    while not scanner.sees("]"):
        item()
        if not scanner.accept(","):
            break
    closing = scanner.position
    scanner.take("]")
    return closing


def to_text(genotype: Genotype) -> str:
    """Writes a genotype. Raises GenotypeError if the notation cannot express the genotype.

    This is so for another space, for a node that keeps more or fewer than two edges, and for an operation whose name
    is not one word.
    """
    check_space(genotype, Darts.name)
    chosen = dict(genotype.choices)
    cells: dict[str, list[tuple[str, int]]] = {"normal": [], "reduce": []}
    node = 2
    while chosen or node == 2:
        for kind, pairs in cells.items():
            edges = [(chosen.pop(f"{kind}/{source}-{node}", None), source) for source in range(node)]
            kept = [(name, source) for name, source in edges if name is not None]
            if len(kept) != 2 or not all(re.fullmatch(NAME, name) for name, _ in kept):
                raise GenotypeError(
                    f"the genotype keeps {kept} into node {kind}/{node}, expected two operations into every node of a "
                    "DARTS cell",
                    fix="derive it in space=darts with deriver=top_predecessors, or keep its JSON",
                )
            pairs += kept
        node += 1
    concat = f"range(2, {node})"
    return "Genotype(" + ", ".join(f"{kind}={pairs}, {kind}_concat={concat}" for kind, pairs in cells.items()) + ")"
