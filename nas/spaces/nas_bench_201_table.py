"""NAS-Bench-201 (Dong & Yang 2020) as a table of measured accuracies, which replaces training by a lookup.

The table is a CSV with a row for each cell. The columns are ``index`` (the official index), ``arch_str`` (the cell in
the benchmark's notation) and any number of ``<dataset>_<split>_<epochs>`` (accuracies in percent). Other columns are
ignored. scripts/convert_nats_bench writes the table from the official data.
"""

import csv
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import numpy as np

from nas.errors import ConfigError, DataError, GenotypeError
from nas.settings.arguments import path_of
from nas.spaces import nas_bench_201_notation
from nas.supernet.genotype import Genotype
from nas.untrusted import regular_file

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ("0-1", "0-2", "1-2", "0-3", "1-3", "2-3")
SIZE_LIMIT = 50_000_000  # bytes of a table; all cells with 30 columns take 6 million
LINE_LIMIT = 20_000  # characters of a line
COLUMNS = 200
CELLS = len(OPS) ** len(EDGES)  # 15,625
# One regular expression checks the text of a whole cell: parsing 15,625 cells would take longer than all the rest.
CELL = re.compile(r"\+".join(r"\|" + "".join(rf"(?:{'|'.join(OPS)})~{i}\|" for i in range(n)) for n in (1, 2, 3)))
ACCURACY = re.compile(r"(?P<dataset>.+)_(?P<split>train|valid|test)_(?P<epochs>[^_]+)")
FORM = "index,arch_str,<dataset>_<train|valid|test>_<epochs>,..."


@dataclass(frozen=True)
class Standing:
    """The accuracy and rank of one cell in one column of the table.

    accuracy: in percent. rank: 1 + the number of cells that are strictly better; cells of equal accuracy share a rank.
    of: the number of cells.
    """

    accuracy: float
    rank: int
    of: int


class NasBench201Table:
    """The accuracies and ranks of NAS-Bench-201's cells.

    table: path of the CSV. columns: the names of the accuracy columns found, in the order of the file.
    Raises DataError if the table cannot be read, lacks columns, or has a malformed row.
    """

    def __init__(self, *, table: str) -> None:
        self.path = path_of(table, "benchmark.table")
        lines = self._lines()
        _, header = next(lines, (1, []))
        self.columns = self._accuracy_columns(header)
        wanted = [header.index(name) for name in ("index", "arch_str", *self.columns)]
        self._indices: list[int] = []
        self._rows: dict[str, int] = {}  # cell -> its row below
        accuracies: list[list[float]] = []
        for number, line in lines:
            if len(line) != len(header):
                self._reject(number, f"{len(line)} fields, expected {len(header)} as in the first line")
            index, cell, *fields = [line[position] for position in wanted]
            if not CELL.fullmatch(cell):
                self._reject(number, f"the arch_str {cell!r}, expected a cell such as {nas_bench_201_notation.EXAMPLE}")
            if cell in self._rows:
                self._reject(number, f"the cell {cell}, which an earlier line has already")
            self._rows[cell] = len(self._rows)
            self._indices.append(self._number(number, index))
            accuracies.append([self._percentage(number, field) for field in fields])
        if not accuracies:
            raise DataError(f"the benchmark table {self.path} has no cells", fix=f"write it in the form {FORM}")
        self._cells = dict(zip(self._indices, self._rows, strict=True))  # official index -> cell
        if len(self._cells) < len(self._indices):
            raise DataError(
                f"the benchmark table {self.path} has {len(self._indices)} cells under {len(self._cells)} indices",
                fix="give every cell its own official index",
            )
        self._accuracies = np.array(accuracies)  # (cells, columns)
        self._sorted = np.sort(self._accuracies, axis=0)

    def __len__(self) -> int:
        return len(self._rows)

    def genotype(self, index: int) -> Genotype:
        """The cell with an official index. Raises GenotypeError if the table has none."""
        if index not in self._cells:
            raise GenotypeError(
                f"the benchmark table {self.path} has no index {index}, expected one of its {len(self)}, "
                f"{min(self._cells)} to {max(self._cells)}",
                fix="correct the index, or give the genotype itself",
            )
        return nas_bench_201_notation.from_text(self._cells[index])

    def index(self, genotype: Genotype) -> int:
        """The official index of a cell. Raises GenotypeError if it is not in the table."""
        return self._indices[self._row(genotype)]

    def look_up(self, genotype: Genotype) -> dict[str, Standing]:
        """column -> accuracy and rank. Raises GenotypeError if the cell is not in the table."""
        accuracies = self._accuracies[self._row(genotype)].tolist()
        return {
            column: Standing(
                accuracy=accuracy,
                rank=len(self) - int(np.searchsorted(ascending, accuracy, side="right")) + 1,
                of=len(self),
            )
            for column, accuracy, ascending in zip(self.columns, accuracies, self._sorted.T, strict=True)
        }

    def accuracies(self, column: str) -> np.ndarray:
        """(cells,) in percent, in the order of the file. Raises KeyError for a column that the table does not have."""
        if column not in self.columns:
            raise KeyError(column)
        return self._accuracies[:, self.columns.index(column)].copy()

    def cell(self, row: int) -> Genotype:
        """The cell in a row, in the order of the file."""
        return self.genotype(self._indices[row])

    def metrics(self, genotype: Genotype) -> dict[str, float]:
        """The same under the names that a search logs: ``benchmark/<column>`` and ``benchmark/<column>_rank``."""
        return {
            name: value
            for column, standing in self.look_up(genotype).items()
            for name, value in (
                (f"benchmark/{column}", standing.accuracy),
                (f"benchmark/{column}_rank", float(standing.rank)),
            )
        }

    def report(self, genotype: Genotype) -> dict[str, Any]:
        """The accuracies and ranks, with the cell's index and text, as plain values for a ``result.json``."""
        return {
            "table": str(self.path),
            "index": self.index(genotype),
            "architecture": nas_bench_201_notation.to_text(genotype),
            "columns": {column: asdict(standing) for column, standing in self.look_up(genotype).items()},
        }

    def check(self, options: Mapping[str, Sequence[str]]) -> None:
        """Raises ConfigError unless `options` are the benchmark's own choices; DataError unless all cells are there.

        options: choice key -> candidate names. The check runs before a search, so that no search fails at its end on a
        derived cell that the table lacks.
        """
        expected = {f"cell/{edge}": sorted(OPS) for edge in EDGES}
        if {key: sorted(names) for key, names in options.items()} != expected:
            raise ConfigError(
                f"the benchmark covers the published space, 4 nodes and the operations {', '.join(OPS)}, got "
                f"{len(options)} choices, the first between {', '.join(next(iter(options.values())))}",
                fix="set space=nas_bench_201 space.nodes=4 ops=nas_bench_201, or benchmark=null",
            )
        if len(self) < CELLS:
            raise DataError(
                f"the benchmark table {self.path} has {len(self)} cells, expected all {CELLS}, as a search may derive "
                "any",
                fix="complete the table, or set benchmark=null",
            )

    def _row(self, genotype: Genotype) -> int:
        text = nas_bench_201_notation.to_text(genotype)
        if text not in self._rows:
            raise GenotypeError(
                f"the cell {text} is not among the {len(self)} of the benchmark table {self.path}",
                fix=f"give a cell of 4 nodes with the operations {', '.join(OPS)}, and a complete table",
            )
        return self._rows[text]

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the line number (from 1) and the fields of each line."""
        try:
            opened = regular_file.opened(self.path, limit=SIZE_LIMIT)
            with io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as stream:
                # Line by line: a line without an end, or a field of many lines, would fill the memory.
                for number in itertools.count(1):
                    if not (line := stream.readline(LINE_LIMIT + 1)):
                        return
                    if len(line) > LINE_LIMIT:
                        raise csv.Error(f"line {number} has more than {LINE_LIMIT} characters")
                    yield number, next(csv.reader([line], strict=True))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or f"not a CSV text: {error}"
            raise DataError(
                f"the benchmark table {self.path} cannot be read ({reason})",
                fix="set benchmark.table to the path of the CSV",
            ) from error

    def _accuracy_columns(self, header: Sequence[str]) -> tuple[str, ...]:
        columns = tuple(name for name in header if ACCURACY.fullmatch(name))
        if {"index", "arch_str"} <= set(header) and columns and len(set(header)) == len(header) <= COLUMNS:
            return columns
        raise DataError(
            f"the benchmark table {self.path} has the columns {', '.join(header) or 'none':.200}; expected index, "
            "arch_str and accuracies such as cifar10_test_200, each once",
            fix=f"write it in the form {FORM}",
        )

    def _number(self, line: int, field: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", field):
            self._reject(line, f"the index {field!r}, expected an integer >= 0")
        return int(field)

    def _percentage(self, line: int, field: str) -> float:
        try:
            accuracy = float(field)
        except ValueError:
            accuracy = math.nan
        if not 0 <= accuracy <= 100:
            self._reject(line, f"the accuracy {field!r}, expected a percentage")
        return accuracy

    def _reject(self, line: int, problem: str) -> NoReturn:
        raise DataError(
            f"line {line} of the benchmark table {self.path} has {problem}", fix="correct the line, or leave it out"
        )
