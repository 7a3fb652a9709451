"""The parts of one's own in CONTRIBUTING.md work as printed."""

import importlib
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import nas

GUIDE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
COMMANDS = re.findall(r"^nas-.* --config-dir .*$", GUIDE, re.MULTILINE)
# Everything is built, and one step of search and of retraining runs.
TRIED = "data=synthetic data.train=48 data.classes=3 search.batch_size=8 retrain.batch_size=16 runtime.device=cpu"


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL)[1])
    for text in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL):
        path = tmp_path / re.search(r"# (my_configs/\S+)", text)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("my_package", None)


def run(line, monkeypatch, *more):
    name, *arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [name, *arguments, *TRIED.split(), "dry_run=true", *more])
    importlib.import_module(f"nas.cli.{name.removeprefix('nas-')}").main()


def test_the_parts_are_built_and_run(package, monkeypatch, capsys):
    operation, others = COMMANDS
    run(operation, monkeypatch, "space.cells=1", "space.channels=4", "retrain.network={cells: 1, channels: 4}")
    assert "conv_5x5" in capsys.readouterr().out
    run(others, monkeypatch, "retrain.network.width=12")
    assert "tanh" in capsys.readouterr().out
    # Without the line that says its place, which YAML files of other groups do not need.
    path = package / "my_configs" / "formats" / "pickled.yaml"
    path.write_text(path.read_text().partition("\n")[2])
    with pytest.raises(SystemExit):
        run(others, monkeypatch)
    expected = "begin my_formats.yaml with the line `# @package formats.my_formats`"
    assert capsys.readouterr().err.endswith(f"expected one entry of it; {expected}\n")


def test_the_rule_stops_a_search_after_its_epoch(package):
    mine, judged = importlib.import_module("my_package"), []

    class Judged(nas.methods.BestOf):
        def judged(self, arch, judge):
            judged.append(judge)
            return super().judged(arch, judge)

    arguments = {"epochs": 3, "batch_size": 8, "device": "cpu", "progress": False, "init_std": 100.0}
    deriver = Judged(samples=2, batches=1)
    found = nas.search(mine.Small(), nas.data.Synthetic(train=48), hooks=[mine.Decided()], deriver=deriver, **arguments)
    assert found.stopped == "the choices are decided"
    assert len(judged) == 1


def test_the_format_is_loaded_by_its_code(package):
    network, names = nn.Linear(2, 3).eval(), {"x": torch.ones(2, 2)}
    subject = SimpleNamespace(network=network, call="y = network(x)")
    artefact = importlib.import_module("my_package").Pickled().write(subject, package)
    exec(artefact.code, names)
    assert torch.equal(names["y"], network(names["x"]))
