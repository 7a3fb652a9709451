"""Every YAML of configs/data names a class and spells out its arguments, with the defaults of the class."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_there_are_configs() -> None:
    assert CONFIGS


def test_spells_out_every_argument_with_its_default(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NAS_DATA_ROOT", raising=False)
    config = OmegaConf.load(path)
    arguments = {key: config[key] for key in config if key != "_target_" and not OmegaConf.is_missing(config, key)}
    parameters = inspect.signature(get_class(config["_target_"])).parameters
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert set(config) - {"_target_"} == set(parameters)
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert arguments == defaults


def test_builds_without_touching_files(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_DATA_ROOT", str(tmp_path / "nowhere"))
    config: Any = OmegaConf.load(path)
    if OmegaConf.is_missing(config, "root"):
        config.root = "nowhere"
    made = instantiate(config, _convert_="all")
    assert callable(made.load)


def test_every_argument_has_a_comment_or_a_plain_name(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    plain = ("_target_:", "classes:", "channels: 3")
    assert all("  # " in line for line in lines[1:] if not line.startswith(plain))


def test_the_package_imports_nothing_that_only_one_family_needs() -> None:
    import subprocess
    import sys

    families = "digits, image_folder, synthetic, torchvision_sets"
    code = f"import sys; from nas.data import {families}; print({{'torchvision', 'sklearn', 'PIL'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
