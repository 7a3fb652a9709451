"""What the commands print at the end."""

from typing import Any

from rich.console import Console
from rich.table import Table

from nas.export import Exported
from nas.genotype import Genotype
from nas.task import Metric


def show_search(genotype: Genotype, parameters: int) -> None:
    """The derived genotype, a row for each choice that was kept."""
    table = Table("choice", "derived", title=f"{genotype.space}, {parameters:,} parameters when retrained")
    for key, name in genotype.choices.items():
        if name is not None:
            table.add_row(key, name)
    Console().print(table)


def show_result(result: dict[str, Any]) -> None:
    """A trained network's score and size."""
    metric = Metric(**result["metric"])
    better = "" if metric.higher_is_better else ", lower is better"
    table = Table("measure", "value", title=f"{result['genotype']['space']} on {result['data']}")
    table.add_row(
        f"test {metric.name.replace('_', ' ')}",
        f"{metric.show(result[f'test_{metric.name}'])} over {result['test_examples']} examples{better}",
    )
    table.add_row("test loss", f"{result['test_loss']:.4f}")
    table.add_row("parameters", f"{result['parameters']:,}")
    table.add_row("multiply-accumulates", f"{result['macs']:,}")
    Console().print(table)


def show_gap(result: dict[str, Any]) -> None:
    """What became of the searched network's score on its way to the derived one; nothing if it was not measured."""
    gap = result.get("discretisation_gap")
    if gap is None:
        return
    metric = Metric(**result["metric"])
    table = Table(
        "discretisation gap",
        "batch norm statistics",
        metric.name.replace("_", " "),
        title=f"after the search, {gap['examples']} examples of the architecture's split",
    )
    for form, what, statistics in (
        ("relaxed", "supernet as searched", "of each batch"),
        ("derived", "derived operations only", "as the search left them"),
        ("recalibrated", "derived operations only", "re-estimated"),
        ("retrained_test", "retrained, on the test split", "its own"),
    ):
        if form in gap:
            table.add_row(what, statistics, "not finite" if gap[form] is None else metric.show(gap[form]))
    Console().print(table)


def show_export(exported: Exported) -> None:
    """The files that were written, and for each format that the network cannot be had in, why."""
    print("\n".join(["", *(f"wrote {path}" for path in exported.paths)]))
    for name, reason in exported.left_out.items():
        print(f"left out {name}: {reason}")


def show_standings(report: dict[str, Any]) -> None:
    """What a benchmark knows of a cell, a row for each of its columns."""
    print(f"\n{report['architecture']}")  # in one piece, to be copied
    table = Table("column", "accuracy", "rank", title=f"index {report['index']} in the benchmark")
    for column, standing in report["columns"].items():
        table.add_row(column, f"{standing['accuracy']:.4f} %", f"{standing['rank']:,} of {standing['of']:,}")
    Console().print(table)
