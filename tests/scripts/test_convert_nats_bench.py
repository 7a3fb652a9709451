"""scripts/convert_nats_bench on a stand-in with the methods of the official API."""

import importlib.machinery
import importlib.util
import io
import subprocess
import sys
import types
from pathlib import Path

import pytest

from nas.spaces.nas_bench_201_notation import from_text
from nas.spaces.nas_bench_201_table import NasBench201Table, Standing

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_nats_bench"
CELLS = [
    "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|",
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
]


class Api:
    """What nats_bench.create(..., "tss") gives, as far as its documentation goes. `trained`: (training set, epochs)."""

    def __init__(self, trained):
        self.trained = trained

    def __len__(self):
        return len(CELLS)

    def arch(self, index):
        return CELLS[index]

    def get_more_info(self, index, dataset, iepoch=None, hp="12", is_random=True):
        assert iepoch is None  # the last epoch
        assert is_random is False  # the mean over the seeds, not one of them
        if (index, dataset, hp) not in self.trained:
            raise KeyError(dataset)
        number = int(hp) / 20 + index + len(dataset) / 100
        info = {"train-accuracy": 99.0, "test-accuracy": 50 + number}
        if dataset != "cifar10":  # which is trained on its validation images
            info["valid-accuracy"] = 30 + number
        return info


def everything(datasets=("cifar10-valid", "cifar10", "cifar100", "ImageNet16-120"), epochs=("12", "200")):
    return {(index, dataset, hp) for index in range(len(CELLS)) for dataset in datasets for hp in epochs}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("convert_nats_bench", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_the_table_holds_what_the_api_says(script, tmp_path):
    with (tmp_path / "table.csv").open("w", newline="") as stream:
        columns = script.convert(Api(everything()), stream)
    datasets = ("cifar10", "cifar100", "ImageNet16-120")
    assert columns == [f"{d}_{split}_{hp}" for hp in ("12", "200") for d in datasets for split in ("valid", "test")]
    table = NasBench201Table(table=str(tmp_path / "table.csv"))
    assert list(table.columns) == columns
    assert [table.index(from_text(text)) for text in CELLS] == [0, 1]
    found = table.look_up(from_text(CELLS[1]))
    assert found["cifar10_test_200"] == Standing(61.07, 1, 2)  # of the network trained on all images
    assert found["cifar10_valid_200"] == Standing(41.13, 1, 2)  # of the one trained on half of them
    assert found["ImageNet16-120_valid_12"] == Standing(31.74, 1, 2)
    assert table.look_up(from_text(CELLS[0]))["cifar100_test_12"].rank == 2


def test_what_was_not_measured_is_no_column(script):
    stream = io.StringIO()
    api = Api(everything(("cifar10-valid", "cifar10"), ("200",)))
    assert script.convert(api, stream) == ["cifar10_valid_200", "cifar10_test_200"]
    assert stream.getvalue().splitlines()[0] == "index,arch_str,cifar10_valid_200,cifar10_test_200"


def test_what_is_missing_later_is_an_error(script):
    trained = everything() - {(1, "cifar100", "200")}
    with pytest.raises(
        ValueError, match="cell 1 lacks cifar100_valid_200, cifar100_test_200; expected what cell 0 has"
    ):
        script.convert(Api(trained), io.StringIO())
    with pytest.raises(ValueError, match="no accuracies of the first cell"):
        script.convert(Api(set()), io.StringIO())


@pytest.mark.parametrize("folder", [True, False])
def test_main_opens_folders_and_files(script, folder, tmp_path, monkeypatch, capsys):
    opened = []

    def create(path, space, fast_mode, verbose):
        opened.append((path, space, fast_mode, verbose))
        return Api(everything())

    monkeypatch.setitem(sys.modules, "nats_bench", types.SimpleNamespace(create=create))
    data, table = tmp_path / "data", tmp_path / "table.csv"
    data.mkdir() if folder else data.touch()
    monkeypatch.setattr(sys, "argv", ["convert_nats_bench", str(data), str(table)])
    assert script.main() is None
    assert opened == [(str(data), "tss", folder, False)]
    assert len(NasBench201Table(table=str(table))) == len(CELLS)
    assert "wrote 2 cells" in capsys.readouterr().out

    monkeypatch.setattr(script, "SCORES", ())
    assert script.main().startswith("error: the data hold no accuracies")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "table.csv"]  # and the table is the old one
    assert len(NasBench201Table(table=str(table))) == len(CELLS)

    monkeypatch.setattr(sys, "argv", ["convert_nats_bench", str(tmp_path / "nowhere"), str(table)])
    assert script.main().startswith(f"error: there are no data at {tmp_path / 'nowhere'}")


def test_without_the_package_it_says_what_to_install(tmp_path):
    arguments = "sys.modules['nats_bench'] = None; sys.argv = ['convert_nats_bench', 'a', 'b']"
    code = f"import runpy, sys; {arguments}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("pip install nats_bench")
    assert len(done.stderr.splitlines()) == 1
