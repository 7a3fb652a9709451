"""scripts/compression_study: what holds for each method, and the table."""

import copy
import importlib.machinery
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from compressing import training
from compressing.methods import METHODS, Task, macs_of
from compressing.resnet import ResNet
from compressing.table import markdown, report
from nas.errors import ConfigError
from nas.supernet.freezing import freeze

SCRIPT = Path(__file__).parents[2] / "scripts" / "compression_study"


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResNet(widths=(4, 8, 16), depth=2).eval()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 8 training and 2 test images for each of two classes."""
    root = tmp_path_factory.mktemp("images")
    pixels = torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, image in enumerate(pixels):
        folder = root / ("test" if number >= 16 else "train") / f"class_{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / f"{number}.png")
    return root


def smaller(method, network, data, *, cap=0.5, seed=0):
    """Returns the network that a method makes, and its part of the multiply-accumulates."""
    before = macs_of(network)
    task = Task(data, data, macs=cap * before, seed=seed, search_epochs=1, lr=0.05, arch_lr=0.03)
    model, found = METHODS[method](copy.deepcopy(network), task)
    plain = freeze(copy.deepcopy(model), found.genotype.choices)
    return plain, macs_of(plain) / before


def inner_widths(network):
    return [block.conv1.out_channels / block.conv2.out_channels for stage in network.stages for block in stage]


def test_uniform_takes_the_largest_ratio_that_holds_the_cap(network, images):
    plain, part = smaller("uniform", network, images)
    # Of 16 inner channels 6 are left, and as large a part of the others, rounded up.
    assert inner_widths(plain) == [2 / 4] * 2 + [3 / 8] * 2 + [6 / 16] * 2
    assert 0.43 < part <= 0.5
    with pytest.raises(ConfigError, match="no ratio holds"):
        smaller("uniform", ResNet(widths=(2, 2), depth=1), images, cap=0.01)


def test_random_networks_use_nearly_all_of_the_cap(network, images):
    parts = [smaller("random", network, images, seed=seed)[1] for seed in (0, 0, 1)]
    assert all(0.475 <= part <= 0.5 for part in parts)
    assert parts[0] == parts[1] != parts[2]


def test_torch_pruning_holds_the_cap(network, images):
    pytest.importorskip("torch_pruning")
    plain, part = smaller("torch_pruning", network, images, cap=0.97)
    assert 0.8 < part <= 0.97
    assert plain(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def job(method, seed, accuracy, **settings):
    size = {"macs": 500, "part_of_macs": 0.5, "parameters": 40}
    updates = {"search": 6 if method == "searched" else 0, "tuning": 2 if method == "searched" else 8}
    return {"method": method, "seed": seed, "test_accuracy": accuracy, "settings": settings, "updates": updates, **size}


ORIGINAL = {"test_accuracy": 0.9, "test_examples": 1000, "parameters": 80, "macs": 1000}


def test_the_table_pairs_runs_of_one_seed():
    jobs = [job("searched", 0, 0.88), job("searched", 1, 0.90), job("uniform", 1, 0.87), job("uniform", 0, 0.86)]
    found = report(ORIGINAL, [*jobs, job("uniform", 2, 0.5)])
    assert found["methods"]["searched"]["mean"] == pytest.approx(0.89)
    assert found["differences"]["searched - uniform"]["mean"] == pytest.approx(0.025)
    assert found["differences"]["searched - uniform"]["interval"] == pytest.approx([0.02, 0.03])
    lines = markdown(found).splitlines()
    assert lines[0].startswith("The original has 90.00 % on 1,000 test images, 1,000 multiply-accumulates")
    assert "| searched | 2 | 89.00 | 1.41 | 88.00 to 90.00 |" in lines
    assert "| searched - uniform | 2 | +2.50 | 0.71 | +2.00 to +3.00 |" in lines
    assert "| searched | 0 | 88.00 | 500 | 0.5000 | 40 | 6 + 2 |" in lines


def test_runs_of_other_settings_are_not_compared():
    with pytest.raises(ConfigError, match="different settings"):
        report(ORIGINAL, [job("uniform", 0, 0.9, epochs=8), job("uniform", 1, 0.9, epochs=6)])


@pytest.fixture
def call(monkeypatch):
    """Calls the script. Returns its error message, or None."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("compression_study", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["compression_study", *map(str, arguments)])
        return module.main()

    threads = torch.get_num_threads()
    yield called
    torch.set_num_threads(threads)


def test_what_is_missing_is_said_in_one_line(call, images, tmp_path):
    for arguments, expected in (
        (["table", tmp_path], "error: .* has no trained network; run the stage train first"),
        (["compress", tmp_path, "--data", images], "error: .* has no trained network; run the stage train first"),
        (["train", tmp_path], "error: --data is missing; .*"),
        (
            ["train", tmp_path, "--data", images, "--search-epochs", 8],
            "error: --search-epochs is 8, expected 1 to 7; .*",
        ),
        (["train", tmp_path, "--data", images, "--method", "x"], "error: --method is x, expected one of searched, .*"),
    ):
        assert re.fullmatch(expected, call(*arguments) or "")


@pytest.mark.long
def test_the_whole_study_in_miniature(call, images, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch_pruning")
    for module in ("compressing.training", "compressing.methods"):
        monkeypatch.setattr(f"{module}.BATCH", 4)
    monkeypatch.setitem(training.ALIKE, "batch_size", 4)
    sizes = ("--train-epochs", 1, "--widths", 4, 8, 8, "--depth", 1, "--epochs", 2, "--search-epochs", 1)
    arguments = ["run", tmp_path / "runs", "--data", images, *sizes, "--seeds", 0]
    assert call(*arguments) is None
    shown = capsys.readouterr().out
    first = sorted(tmp_path.rglob("job.json"))
    before = [path.read_bytes() for path in first]
    assert [path.parent.name for path in first] == [f"{name}_seed_0" for name in sorted(METHODS)]
    # A job whose last file is missing goes on with what its runs have.
    for path in first:
        path.unlink()
    assert call(*arguments) is None
    assert capsys.readouterr().out == shown
    assert [path.read_bytes() for path in first] == before
    assert "has the settings" in call(*arguments, "--lr", 0.1)
    assert call("compress", *arguments[1:-2], "--method", "uniform", "--seed", 7, "--pilot") is None
    assert (
        not (tmp_path / "runs" / "pilot_uniform_seed_7" / "tuning" / "result.json").read_text().count("test_accuracy")
    )
    assert call("table", tmp_path / "runs", "--out", tmp_path / "table") is None
    found = json.loads((tmp_path / "table.json").read_text())
    assert [run["method"] for run in found["runs"]] == sorted(METHODS)
    assert {sum(run["updates"].values()) for run in found["runs"]} == {8}
    assert {run["method"]: run["updates"]["search"] for run in found["runs"]}["searched"] == 4
    assert all(run["part_of_macs"] <= 0.5 for run in found["runs"])
    assert (tmp_path / "table.md").read_text().startswith("The original has ")
