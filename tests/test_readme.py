"""The examples and commands of README.md work as printed."""

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

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


@pytest.mark.long  # the Python example runs each time
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


def commands():
    """The commands in the blocks of README.md that are no outputs, without comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.partition("  #")[0].rstrip() for kind, block in blocks if not kind for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?nas-", line)]


def run(line, monkeypatch, *more):
    """The exit code of a command of README.md."""
    name, *arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [name, *arguments, *more])
    module = {"nas-report": "report_runs"}.get(name, name.removeprefix("nas-"))
    try:
        importlib.import_module(f"nas.cli.{module}").main()
    except SystemExit as end:
        return end.code or 0
    return 0


def test_there_is_an_example_of_every_command():
    with (README.parent / "pyproject.toml").open("rb") as stream:
        known = tomllib.load(stream)["project"]["scripts"]
    assert {line.split()[0] for line in commands()} == set(known)


# Those without "...", on data that need no download, as they stand; the settings of the others compose.
@pytest.mark.parametrize(
    "line", [line for line in commands() if re.match("nas-(run|search|retrain|evaluate|export) ", line)]
)
def test_the_settings_of_a_command_exist(line, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    if line == "nas-run epochs=0":
        assert run(line, monkeypatch) == 2
        assert f"$ {line}\n{capsys.readouterr().err}" in README.read_text()
    else:
        assert run(line.replace(" ...", ""), monkeypatch, "--cfg", "job") == 0


@pytest.mark.long
def test_the_other_commands_run_on_what_a_run_leaves(example, monkeypatch, capsys):
    folder = example / "my_images"
    for split, count in (("train", 8), ("test", 2)):
        for label in ("cats", "dogs"):
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (index * 20, 40, 99)).save(folder / split / label / f"{index}.jpg")
    (images,) = (line for line in commands() if "data.root=my_images" in line)
    small = ("search.batch_size=4", "retrain.batch_size=4", "space.cells=1", "space.channels=4", "formats=[weights]")
    sizes = ("retrain.network.cells=1", "retrain.network.channels=4", "hydra.run.dir=runs/my_run", "runtime.device=cpu")
    assert run(images, monkeypatch, "search.epochs=1", "retrain.epochs=1", *small, *sizes) == 0
    for name, left in (("nas-draw", "cell.svg"), ("nas-report", "runs/my_run/report.html")):
        (line,) = (line for line in commands() if line.startswith(name))
        assert run(line, monkeypatch) == 0
        assert Path(left).stat().st_size > 1000
    (line,) = (line for line in commands() if line.startswith("nas-predict"))
    capsys.readouterr()
    assert run(line.replace("runs/.../", "runs/my_run/").replace("my_folder", "my_images/test/cats"), monkeypatch) == 0
    assert "0.jpg" in capsys.readouterr().out
