"""The tables at the end of a command print names unchanged."""

import io

import pytest

from nas.cli.report import show_classes, show_gap, show_result, show_search, show_standings
from nas.supernet.genotype import Genotype

NAMES = ("dogs [small]", "dogs [large]", "[/a]", ":cat:", "back\\")
RESULT = {
    "metric": {"name": "exact[0]", "higher_is_better": True, "percent": True},
    "genotype": {"space": "[/space]"},
    "data": "[bold]data",
    "test_exact[0]": 0.5,
    "test_examples": 4,
    "test_loss": 1.0,
    "parameters": 1,
    "macs": 1,
    "test_per_class": {name: {"accuracy": 0.5, "examples": 4} for name in NAMES},
    "test_confusion": {name: {name: 4} for name in NAMES},
    "discretisation_gap": {"examples": 4, "relaxed": 0.5},
}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_names_in_brackets_or_colons_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_classes(RESULT)
    heading, *rows = (line for line in capsys.readouterr().out.splitlines() if "dogs" in line or "│" in line)
    assert all(name in heading for name in NAMES)
    assert all(row.split("│")[1].strip() == name for row, name in zip(rows, NAMES, strict=True))


def test_titles_and_every_other_table_too(capsys: pytest.CaptureFixture[str]) -> None:
    show_search(Genotype("[/space]", {"blocks[0].act": "[red]relu"}), 10)
    show_result(RESULT)
    show_gap(RESULT)
    show_standings({"architecture": "a", "index": 1, "columns": {"[x]": {"accuracy": 1.0, "rank": 1, "of": 1}}})
    shown = capsys.readouterr().out
    for text in ("blocks[0].act", "[red]relu", "[/space] on [bold]data", "test exact[0]", " exact[0] ", "[x]"):
        assert text in shown


class Terminal(io.TextIOWrapper):
    """Standard output of an encoding, and what was written there."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", newline="")

    def written(self) -> str:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
@pytest.mark.parametrize("columns", ["10", "40", "200"])
@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_every_terminal_shows_every_name(
    encoding: str, columns: str, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", term)
    names = ("Bär", "\u732b", "a\x1b[2J", "x" * 30)
    result = RESULT | {
        "genotype": {"space": "größe"},
        "test_per_class": {name: {"accuracy": 0.25, "examples": 4} for name in names},
        "test_confusion": {name: {name: 4} for name in names},
    }
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", terminal := Terminal(encoding))
        show_result(result)
        show_classes(result)
        show_search(Genotype("größe", {"größe": "größe3"}), 10)
        written = terminal.written()
    assert "\x1b[2J" not in written
    if encoding == "ascii":
        assert "gr\\xf6\\xdfe3" in written
    if columns != "40":  # there a name of 30 letters is broken into two lines of a table
        assert "x" * 30 in written
    assert written.count("25.00%") >= len(names)


def test_a_confusion_matrix_that_does_not_fit_is_left_to_the_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"class_number_{number}" for number in range(8)]
    per_class = {name: {"accuracy": 0.5, "examples": 4} for name in names}
    show_classes(RESULT | {"test_per_class": per_class, "test_confusion": {name: {} for name in names}})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 69
    assert "test_confusion in result.json says which class is taken for which" in out


def test_balanced_accuracy_and_the_worst_class_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    worst = {"name": "[/a]", "accuracy": 0.25, "examples": 4}
    show_result(RESULT | {"test_balanced_accuracy": 0.375, "test_worst_class": worst})
    shown = capsys.readouterr().out
    assert "37.50%, the mean over the classes" in shown
    assert "[/a], 25.00% of 4" in shown
