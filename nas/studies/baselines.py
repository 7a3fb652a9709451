"""The baselines of a study, from a benchmark's table: random cells, random search at equal cost, and trivial cells."""

import re
from typing import Any

import numpy as np

from nas.errors import ConfigError
from nas.spaces.nas_bench_201_notation import from_text
from nas.spaces.nas_bench_201_table import ACCURACY, NasBench201Table
from nas.studies.plan import Benchmark

# What a person would draw, and what a collapsed search ends in.
CELL = "|{0}~0|+|{0}~0|{0}~1|+|{1}~0|{0}~1|{0}~2|"
DRAWN = {
    "3x3 convolutions on all edges": CELL.format("nor_conv_3x3", "nor_conv_3x3"),
    "3x3 convolutions, one skip over all": CELL.format("nor_conv_3x3", "skip_connect"),
    "skips on all edges": CELL.format("skip_connect", "skip_connect"),
}


class Baselines:
    """Reads the baselines of one column of a table. There are as many runs of each baseline as each method has seeds.

    Raises ConfigError if the table lacks a column, or if cells would be chosen by a test accuracy.
    """

    def __init__(self, benchmark: Benchmark, *, seeds: tuple[int, ...]) -> None:
        self.benchmark = benchmark
        self.seeds = seeds
        self.table = NasBench201Table(table=benchmark.table)
        for column in (benchmark.column, benchmark.chosen_by):
            if column is not None and column not in self.table.columns:
                raise ConfigError(
                    f"the benchmark table {benchmark.table} has no column {column}, expected one of "
                    f"{', '.join(self.table.columns)}",
                    fix=f"set benchmark.column: {self.table.columns[0]}",
                )
        if benchmark.chosen_by is not None and "_test_" in benchmark.chosen_by:
            raise ConfigError(
                f"benchmark.chosen_by is {benchmark.chosen_by}, expected a column of a validation split: nothing is "
                "chosen by test accuracies",
                fix="set it to e.g. cifar10_valid_12",
            )

    def all_cells(self) -> np.ndarray:
        """Returns the reported column of all cells: an array of shape (cells,)."""
        return self.table.accuracies(self.benchmark.column)

    def random_cells(self) -> dict[int, float]:
        """Returns seed -> the accuracy of one cell, drawn with this seed."""
        values = self.all_cells()
        return {seed: float(values[self._drawn(seed, "cell", 1)[0]]) for seed in self.seeds}

    def cells_at_cost(self, search_epochs: float) -> int | None:
        """Returns how many cells random search trains with the images that one search sees. None without a column to
        choose by, and where not even one is trained.

        search_epochs: see `nas.studies.collected.epochs_of_images`. One epoch of training a cell sees each image once.
        For CIFAR-10's validation accuracy the benchmark trains on half of the images.
        """
        if self.benchmark.chosen_by is None:
            return None
        column = ACCURACY.fullmatch(self.benchmark.chosen_by)
        if column is None or not re.fullmatch("0*[1-9][0-9]*", column["epochs"]):
            return None
        seen = 0.5 if (column["dataset"], column["split"]) == ("cifar10", "valid") else 1.0  # see convert_nats_bench
        return int(search_epochs // (seen * int(column["epochs"]))) or None

    def random_search(self, cells: int) -> dict[int, float]:
        """Returns seed -> the accuracy of the best of `cells_at_cost` cells, chosen by the column `chosen_by`."""
        assert self.benchmark.chosen_by is not None
        chosen_by, values = self.table.accuracies(self.benchmark.chosen_by), self.all_cells()
        found = {}
        for seed in self.seeds:
            drawn = self._drawn(seed, "search", cells)
            found[seed] = float(values[drawn[int(np.argmax(chosen_by[drawn]))]])
        return found

    def drawn_cells(self) -> list[dict[str, Any]]:
        """Returns a row for each trivial cell, which nobody has to search for."""
        rows = []
        for name, text in DRAWN.items():
            standing = self.table.look_up(from_text(text))[self.benchmark.column]
            rows.append({"name": name, "cell": text, "accuracy": standing.accuracy, "rank": standing.rank})
        return rows

    def sampled(self, count: int) -> np.ndarray:
        """Returns `count` different rows of the table, shape (count,). They are the same for every supernet."""
        generator = np.random.default_rng(0)
        return generator.permutation(len(self.table))[:count]

    def _drawn(self, seed: int, purpose: str, count: int) -> np.ndarray:
        generator = np.random.default_rng([seed, ("cell", "search").index(purpose)])
        return generator.integers(len(self.table), size=count)
