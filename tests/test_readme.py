"""The worked example of README.md works as printed."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas.runtime.runtime import Runtime
from nas.supernet.choice import Choice
from nas.supernet.genotype import Genotype
from nas.training.trained import Trained

README = Path(__file__).parents[1] / "README.md"
HEADING = "## Your own model"

# As in the example, but for the time it takes.
SHORT = (
    "search.epochs=1",
    "search.batch_size=256",
    "retrain.epochs=1",
    "retrain.batch_size=256",
    "runtime.device=cpu",
    "runtime.threads=1",
    "tracker=jsonl",
    "formats=[program]",
    "hydra.run.dir=out",
)


def section():
    text = README.read_text()
    assert HEADING in text, f"README.md has no section {HEADING!r}"
    return text.split(HEADING, 1)[1].split("\n## ", 1)[0]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A directory with the example's file; the command is started there, and what it imports is forgotten after."""
    (tmp_path / "my_model.py").write_text(re.search(r"```python\n(.*?)```", section(), re.DOTALL)[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_model", None)


def test_the_models_of_the_example_are_searched_retrained_and_exported(example, monkeypatch):
    command = re.search(r"^ *(nas-run .*?[^\\])$", section(), re.MULTILINE | re.DOTALL)[1]
    arguments = shlex.split(command.replace("\\\n", " "))
    assert "space.factory=my_model.SmallResNet" in arguments
    monkeypatch.setattr(sys, "argv", [*arguments, *SHORT])
    importlib.import_module("nas.cli.run").main()

    chosen = json.loads((example / "out" / "genotype.json").read_text())["choices"]
    searched = {
        part: {name for key, name in chosen.items() if part in key} for part in ("kernel", "activation", "block")
    }
    assert all(searched.values()), "kernel sizes, activations and block types are searched"
    trained = Trained.load(
        example / "out" / "retrain" / "checkpoint.pt", allow=["my_model"], runtime=Runtime(device="cpu")
    )
    assert not any(isinstance(module, Choice) for module in trained.network.modules())

    inputs = torch.randn(3, *trained.spec.input_shape)
    torch.save(inputs, example / "inputs")
    program = (
        "import sys, torch; module = torch.export.load('out/export/model.pt2').module(); "
        "torch.save(module(torch.load('inputs')), 'outputs'); assert not {'nas', 'my_model'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
    with torch.no_grad():
        assert torch.allclose(torch.load(example / "outputs"), trained.network(inputs), atol=1e-5)


def test_the_python_example_runs_and_finds_what_the_command_finds(tmp_path, monkeypatch, capsys):
    code = re.search(r"## Python\n+```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert f"{names['net'].result['test_accuracy']}" in capsys.readouterr().out
    assert isinstance(names["network"], torch.nn.Module)
    assert not names["network"].training
    settings = ("space=nas_bench_201", "space.channels=4", "space.cells=1", "data=digits", "hydra.run.dir=out")
    numbers = ("search.epochs=5", "search.batch_size=256", "seed=0", "runtime.threads=null", "tracker=jsonl")
    monkeypatch.setattr(sys, "argv", ["nas-search", *settings, *numbers])
    importlib.import_module("nas.cli.search").main()
    assert Genotype.load(tmp_path / "out" / "genotype.json") == names["found"].genotype
