"""Every YAML in configs/data names a class and lists all its arguments, with the defaults of the class."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

FILES = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))
# Without those that change another one.
CONFIGS = [path for path in FILES if "defaults:" not in path.read_text()]


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def settings(path: Path) -> Any:
    """What the file itself sets; `defaults` are instructions to Hydra."""
    config: Any = OmegaConf.load(path)
    config.pop("defaults", None)
    return config


def test_there_are_configs() -> None:
    assert CONFIGS


def test_spells_out_every_argument_with_its_default(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NAS_DATA_ROOT", raising=False)
    config = settings(path)
    arguments = {key: config[key] for key in config if key != "_target_" and not OmegaConf.is_missing(config, key)}
    parameters = inspect.signature(get_class(config["_target_"])).parameters
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert set(config) - {"_target_"} == set(parameters)
    required = {name: "x" for name, p in parameters.items() if p.default is inspect.Parameter.empty}
    made = get_class(config["_target_"])(**required)
    assert arguments == {name: getattr(made, name) for name in parameters if name not in required}


def test_builds_without_touching_files(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_DATA_ROOT", str(tmp_path / "nowhere"))
    config = settings(path)
    for key in [key for key in config if OmegaConf.is_missing(config, key)]:
        config[key] = "nowhere"
    made = instantiate(config, _convert_="all")
    assert callable(made.load)


def test_every_argument_has_a_comment_or_a_plain_name(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    plain = ("_target_:", "classes:", "channels: 3")
    assert all("  # " in line for line in lines[1:] if not line.startswith(("#", *plain)))


def test_the_package_imports_nothing_that_only_one_family_needs() -> None:
    import subprocess
    import sys

    families = "digits, image_folder, synthetic, torchvision_sets"
    code = f"import sys; from nas.data import {families}; print({{'torchvision', 'sklearn', 'PIL'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
