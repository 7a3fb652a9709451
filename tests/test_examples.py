"""The scripts in examples/ run as they are, for fewer epochs."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_every_example_is_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"own_images", "table_of_numbers", "sequence_model"}


@pytest.mark.parametrize(
    ("name", "epochs", "fits"),
    [
        ("own_images", 2, lambda accuracy: 0 <= accuracy <= 1),
        ("table_of_numbers", 3, lambda error: error < 0.9),  # 1.0 is what the mean of the table reaches
        ("sequence_model", 2, lambda accuracy: 0 <= accuracy <= 1),
    ],
)
def test_an_example_runs(name, epochs, fits, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)["main"](epochs)
    assert fits(found)
    assert '"format": "nas-genotype"' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
