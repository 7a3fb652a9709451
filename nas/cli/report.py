"""What the commands print at the end."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from nas.escaping import printable
from nas.export import Exported
from nas.genotype import Genotype
from nas.task import Metric


class Table(RichTable):
    """Of cells that may be names of others: what a terminal would take for a command is spelt out."""

    def __init__(self, *headers: str, title: str | None = None) -> None:
        super().__init__(*map(printable, headers), title=None if title is None else printable(title))

    def add_row(self, *cells: str) -> None:  # type: ignore[override]
        super().add_row(*map(printable, cells))


def show(table: Table) -> None:
    """Print a table as it is: names of a user's, in brackets or between colons, are no markup and no emoji."""
    Console(markup=False, emoji=False).print(table)


def show_search(genotype: Genotype, parameters: int) -> None:
    """The derived genotype, a row for each choice that was kept."""
    table = Table("choice", "derived", title=genotype.space)
    for key, name in genotype.choices.items():
        if name is not None:
            table.add_row(key, name)
    show(table)
    print(f"{parameters:,} parameters when retrained\n")


# What a result may hold of a task's measures, and how it is shown.
MEASURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "test_top5_accuracy": ("test top-5 accuracy", "{:.2%}".format),
    "test_expected_calibration_error": ("expected calibration error", "{:.4f}".format),
    "test_root_mean_squared_error": ("root mean squared error", "{:.4g}".format),
    "test_r_squared": ("R squared", "{:.4f}".format),
}
LARGEST_CONFUSION = 20  # classes; wider tables do not fit into a terminal


def show_result(result: dict[str, Any]) -> None:
    """A trained network's score and size, and its speed where it was measured."""
    metric = Metric(**result["metric"])
    better = "" if metric.higher_is_better else ", lower is better"
    table = Table("measure", "value", title=f"{result['genotype']['space']} on {result['data']}")
    table.add_row(
        f"test {metric.name.replace('_', ' ')}",
        f"{metric.show(result[f'test_{metric.name}'])} over {result['test_examples']} examples{better}",
    )
    if (interval := result.get(f"test_{metric.name}_interval")) is not None:
        table.add_row("95 % interval", " to ".join(map(metric.show, interval)))
    for name, (title, form) in MEASURES.items():
        if result.get(name) is not None:
            table.add_row(title, form(result[name]))
    table.add_row("test loss", f"{result['test_loss']:.4f}")
    likelihood = result.get("test_negative_log_likelihood")
    if likelihood is not None and f"{likelihood:.4f}" != f"{result['test_loss']:.4f}":  # that of most classifiers
        table.add_row("negative log-likelihood", f"{likelihood:.4f}")
    table.add_row("parameters", f"{result['parameters']:,}")
    table.add_row("multiply-accumulates", f"{result['macs']:,}")
    for one in result.get("latency", []):
        table.add_row(
            f"latency, batch of {one['batch']}",
            f"median {one['median_ms']:.2f} ms, 95 % within {one['p95_ms']:.2f} ms",
        )
    if "peak_memory_bytes" in result:
        table.add_row("peak memory", f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB {result['peak_memory_of']}")
        table.add_row("device", result["device"])
    show(table)


def show_classes(result: dict[str, Any]) -> None:
    """The accuracy of every class and, of not too many, what they are taken for; nothing where there are no classes."""
    if "test_per_class" not in result:
        return
    confusion: dict[str, dict[str, int]] = result["test_confusion"]
    shown = list(confusion) if len(confusion) <= LARGEST_CONFUSION else []
    title = "each row a true class, and how often it is taken for which" if shown else None
    table = Table("class", "accuracy", "examples", *shown, title=title)
    for name, measured in result["test_per_class"].items():
        accuracy = "-" if measured["accuracy"] is None else f"{measured['accuracy']:.2%}"
        counts = (str(confusion[name].get(other, "")) for other in shown)
        table.add_row(name, accuracy, str(measured["examples"]), *counts)
    show(table)


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
    show(table)


def show_export(exported: Exported) -> None:
    """The files that were written, and for each format that the network cannot be had in, why."""
    files = ", ".join(path.name for path in exported.paths)
    print(f"\nexported to {printable(exported.paths[0].parent)}: {printable(files)}")
    for name, reason in exported.left_out.items():
        print(f"left out {printable(name)}: {printable(reason)}")


def show_standings(report: dict[str, Any]) -> None:
    """What a benchmark knows of a cell, a row for each of its columns."""
    print(f"\n{report['architecture']}")  # in one piece, to be copied
    table = Table("column", "accuracy", "rank", title=f"index {report['index']} in the benchmark")
    for column, standing in report["columns"].items():
        table.add_row(column, f"{standing['accuracy']:.4f} %", f"{standing['rank']:,} of {standing['of']:,}")
    show(table)
