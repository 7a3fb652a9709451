"""nas-draw, in this process."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nas.cli.draw import run
from nas.errors import ConfigError, GenotypeError


def draw(out, **settings):
    given = {"genotype": "DARTS_V2", "theme": "auto", "stacked": False, "benchmark": None, "allow_targets": []}
    run(OmegaConf.create({**given, "out": str(out), **settings}), Path())


def test_it_draws_a_published_genotype(tmp_path, capsys):
    draw(tmp_path / "cell.svg")
    draw(tmp_path / "cell.PNG", theme="dark")
    assert "DARTS_V2 (darts)" in (tmp_path / "cell.svg").read_text()
    assert (tmp_path / "cell.PNG").read_bytes().startswith(b"\x89PNG")
    assert f"drawn to {tmp_path / 'cell.svg'}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cell.jpg", "nowhere/cell.svg"])
def test_what_cannot_be_written_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"end in \.svg or \.png|no directory"):
        draw(tmp_path / name)


def test_what_is_no_genotype_or_theme_is_refused(tmp_path):
    with pytest.raises(GenotypeError):
        draw(tmp_path / "cell.svg", genotype="DARTS_V9")
    with pytest.raises(ConfigError, match="theme must be one of"):
        draw(tmp_path / "cell.svg", theme="blue")
