"""Tables at the end of a command show names as they are."""

import pytest

from nas.cli.report import show_classes, show_gap, show_result, show_search, show_standings
from nas.genotype import Genotype

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
