"""Tables and texts that the commands print at their end."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from torch import nn

from nas.data.survey import lines, warnings
from nas.drawing.architecture import Cell, parted
from nas.drawing.text import draw_cells
from nas.formats.export import CARD, GENOTYPE, METADATA, Exported
from nas.methods.front import Point, table
from nas.supernet.choice import choices
from nas.supernet.genotype import Genotype
from nas.training.task import Metric
from nas.untrusted.escaping import printable


class Shown(Table):
    """A table of plain texts: brackets and colons in a user's names are neither markup nor emoji.

    Characters that the terminal cannot encode are replaced before the widths are computed. Long texts are wrapped.
    """

    def __init__(self, *headings: str, title: str | None = None) -> None:
        super().__init__(title=None if title is None else encodable(title))
        for heading in headings:
            self.add_column(encodable(heading), overflow="fold")
        self.texts = [tuple(map(encodable, headings))]

    def add_row(self, *cells: Any, **options: Any) -> None:
        texts = tuple(encodable(str(cell)) for cell in cells)
        super().add_row(*texts, **options)
        self.texts.append(texts)

    def fits(self) -> bool:
        """Says whether the terminal is wide enough for every word of the table."""
        console = plain_console()
        return Measurement.get(console, console.options.update(max_width=10_000), self).minimum <= console.width


def plain_console() -> Console:
    return Console(markup=False, emoji=False)


def encodable(text: str) -> str:
    """Returns the text with escapes for invisible characters and for those that standard output cannot encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def show(table: Shown) -> None:
    """Prints a table. In a terminal that is too narrow for it, prints one line per cell."""
    if table.fits():
        plain_console().print(table)
        return
    headings, *rows = table.texts
    if table.title:
        print(f"{table.title}:")
    for row in rows:
        if len(row) == 2:
            print(f"{row[0]}: {row[1]}")
        else:
            print("  ".join(f"{heading}: {cell}" for heading, cell in zip(headings, row, strict=True) if cell))
    print()


def show_data(known: Mapping[str, Any]) -> None:
    """Prints the facts that `nas.data.survey` gives of a data set, and warnings about likely mistakes."""
    for line in lines(known):
        print(encodable(line))
    for text in warnings(known):
        print(f"warning: {text}", file=sys.stderr)


def show_search(genotype: Genotype, parameters: int) -> None:
    """Prints the derived genotype: a drawing of its cells, and a row for each other choice that was kept."""
    cells, others = parted(genotype.choices)
    if cells:
        show_cells(cells, title=genotype.space)
    kept = {key: name for key, name in others.items() if name is not None}
    if kept or not cells:
        table = Shown("choice", "derived", title=genotype.space)
        for key, name in kept.items():
            table.add_row(key, name)
        show(table)
    print(f"{parameters:,} parameters when retrained\n")


def show_cells(cells: list[Cell], *, title: str) -> None:
    """Draws cells as text, side by side if the terminal is wide enough."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(f"\n{encodable(title)}")
    print("\n".join(map(encodable, draw_cells(cells, width=plain_console().width, encoding=encoding).split("\n"))))
    print()


# What a result may hold of a task's measures, and how it is shown.
MEASURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "test_balanced_accuracy": ("balanced accuracy", "{:.2%}, the mean over the classes".format),
    "test_worst_class": ("worst class", lambda one: f"{one['name']}, {one['accuracy']:.2%} of {one['examples']}"),
    "test_top5_accuracy": ("test top-5 accuracy", "{:.2%}".format),
    "test_expected_calibration_error": ("expected calibration error", "{:.4f}".format),
    "test_root_mean_squared_error": ("root mean squared error", "{:.4g}".format),
    "test_r_squared": ("R squared", "{:.4f}".format),
}
LARGEST_CONFUSION = 20  # classes; wider tables do not fit into a terminal


def show_result(result: dict[str, Any]) -> None:
    """Prints a trained network's score and size, and its speed if that was measured."""
    metric = Metric(**result["metric"])
    better = "" if metric.higher_is_better else ", lower is better"
    table = Shown("measure", "value", title=f"{result['genotype']['space']} on {result['data']}")
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
    macs = result["macs"]
    table.add_row("multiply-accumulates", "not counted" if macs is None else f"{macs:,}")
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
    """Prints the accuracy of every class and, if there are few classes, their confusions.

    Prints nothing without classes.
    """
    if result.get("test_per_class") is None:
        return
    confusion: dict[str, dict[str, int]] = result["test_confusion"] or {}
    table = classes_table(result, list(confusion) if len(confusion) <= LARGEST_CONFUSION else [])
    whole = not confusion or (len(table.columns) > 3 and table.fits())
    show(table if whole else classes_table(result, []))
    if not whole:
        print("test_confusion in result.json says which class is taken for which")


def classes_table(result: dict[str, Any], columns: list[str]) -> Shown:
    """Returns a table with a row for each class. columns: the classes that it may be taken for."""
    title = "each row a true class, and how often it is taken for which" if columns else None
    table = Shown("class", "accuracy", "examples", *columns, title=title)
    for name, measured in result["test_per_class"].items():
        accuracy = "-" if measured["accuracy"] is None else f"{measured['accuracy']:.2%}"
        counts = (str(result["test_confusion"][name].get(other, "")) for other in columns)
        table.add_row(name, accuracy, str(measured["examples"]), *counts)
    return table


def show_choices(supernet: nn.Module, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Prints the choices of a search, and the sizes of the smallest and the largest network."""
    table = Shown("choice", "in place of", "candidates")
    for key, sharing in choices(supernet).items():
        table.add_row(key, type(sharing[0].candidates[0]).__name__, ", ".join(sharing[0].names))
    show(table)
    for name, (least, most) in ranges.items():
        print(f"{name}: {amount(name, least)} to {amount(name, most)}")


def show_cap(result: dict[str, Any]) -> None:
    """A line for each cap; nothing without caps."""
    for name, found in result.get("cap", {}).items():
        predicted, cap = (amount(name, found[one]) for one in ("predicted", "cap"))
        measured = (
            f", {amount(name, found['measured'])} measured" if name == "latency_ms" and "measured" in found else ""
        )
        print(f"{name}: {predicted} of the derived network{measured}, cap {cap}")


def amount(name: str, value: float) -> str:
    """Returns a size of a network as text. All but times are whole numbers."""
    return f"{value:,.4g}" if name == "latency_ms" else f"{value:,.0f}"


def show_front(points: Sequence[Point], metric: Metric) -> None:
    """Prints a row for each network of several caps; nothing for one cap."""
    if points:
        headings, rows = table(points, metric)
        shown = Shown(*headings, title="networks by their caps, before retraining")
        for row in rows:
            shown.add_row(*row)
        show(shown)


def show_gap(result: dict[str, Any]) -> None:
    """Prints how the searched network's score changed on its way to the derived one; nothing if it was not measured."""
    gap = result.get("discretisation_gap")
    if gap is None:
        return
    metric = Metric(**result["metric"])
    table = Shown(
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
    """Prints the files that were written, and for each format that failed, the reason."""
    files = ", ".join(path.name for path in exported.paths)
    print(f"\nexported to {printable(exported.paths[0].parent)}: {printable(files)}")
    if not exported.left_out and {path.name for path in exported.paths} <= {CARD, GENOTYPE, METADATA}:
        print("none of the files holds the network, as no format was chosen; formats=[weights] does")
    for name, reason in exported.left_out.items():
        print(f"left out {printable(name)}: {printable(reason)}")


def show_standings(report: dict[str, Any]) -> None:
    """Prints what a benchmark knows about a cell: a row for each of its columns."""
    print(f"\n{report['architecture']}")  # in one piece, to be copied
    table = Shown("column", "accuracy", "rank", title=f"index {report['index']} in the benchmark")
    for column, standing in report["columns"].items():
        table.add_row(column, f"{standing['accuracy']:.4f} %", f"{standing['rank']:,} of {standing['of']:,}")
    show(table)
