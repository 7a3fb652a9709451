"""The wheel, installed away from the checkout, runs from an empty directory."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cli.conftest import TINY

CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, CHECKOUT],
        check=True,
        capture_output=True,
    )
    (built,) = directory.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_at_the_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"nas", "gumbel_nas-0.1.0.dist-info"}
    shipped = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "configs").rglob("*.yaml")}
    assert {name.removeprefix("nas/") for name in names if name.endswith(".yaml")} == shipped
    assert {"nas/py.typed", "nas/report/style.css", "nas/report/sort.js"} <= set(names)


@pytest.mark.long
def test_installed_wheel_searches_from_an_empty_directory(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel],
        check=True,
    )
    # PYTHONPATH puts the wheel before the checkout, which may be installed editable.
    finished = subprocess.run(
        [site / "bin" / "nas-search", *TINY],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    (run,) = (empty / "runs").iterdir()
    assert (run / "genotype.json").exists()
    assert f"Everything is in {run}" in finished.stdout


def test_plain_checkout_runs_as_modules(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "nas.cli.run", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0
    assert finished.stdout.startswith("nas-run: ")
