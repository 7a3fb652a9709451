"""nas.load returns the trained network from the files of a run or an export, and refuses all other files."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.conftest import TINY
from PIL import Image

import nas
from nas.errors import CheckpointError, ConfigError, DeviceError
from nas.runtime.runtime import Runtime
from nas.settings.building import built
from nas.spaces.darts import AuxiliaryHead
from nas.storage import atomic, checkpoint_file
from nas.supernet.genotype import Genotype
from nas.training.evaluate import score
from nas.training.trained import Trained, scoring_loader

DARTS = [argument for argument in TINY if not argument.startswith(("search", "experiment"))]
DARTS += [
    "genotype=DARTS_V1", "space=darts", "data.size=32", "formats=[]", "seed=3",
    "retrain.network={channels: 4, cells: 3, auxiliary: true}", "retrain.drop_path=0.2",
]  # fmt: skip


def command(name, *arguments):
    import importlib

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"nas-{name}", *arguments])
        importlib.import_module(f"nas.cli.{name}").main()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A DARTS network trained with an auxiliary head and drop-path, and beside it what was exported of it."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    command("retrain", *DARTS, f"hydra.run.dir={directory}")
    checkpoint = directory / "retrain" / "checkpoint.pt"
    arguments = ("formats=[weights,standalone]", "runtime.device=cpu", f"hydra.run.dir={directory}/export")
    command("export", f"checkpoint={checkpoint}", *arguments)
    return directory


@pytest.fixture
def exported(run, tmp_path):
    """A copy of the export, to be damaged."""
    return shutil.copytree(run / "export", tmp_path / "export")


def trained(run):
    return Trained.load(run / "retrain" / "checkpoint.pt", allow=[], runtime=Runtime(device="cpu"))


@pytest.mark.parametrize("where", ["", "retrain/checkpoint.pt", "export"])
def test_the_network_is_the_one_that_was_trained_to_the_last_digit(run, where):
    network = nas.load(run / where)
    assert not any(module.training for module in network.modules())
    original = trained(run)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), original.network(x))
    loader = scoring_loader(original, built(original.config["data"], "data").load(), Runtime(device="cpu"))
    scored, result = score(network, loader, original.task, original.spec), json.loads((run / "result.json").read_text())
    assert (scored.metric, scored.loss) == (result["test_accuracy"], result["test_loss"])


def test_an_export_has_no_auxiliary_head(run):
    heads = [
        sum(isinstance(module, AuxiliaryHead) for module in nas.load(run / where).modules()) for where in ("", "export")
    ]
    assert heads == [1, 0]
    assert "Auxiliary" not in (run / "export" / "model.py").read_text()


def test_no_code_of_an_export_is_run(exported):
    (exported / "model.py").write_text("raise SystemExit('it was run')")
    nas.load(exported)


def test_importing_the_package_takes_no_time():
    code = "import nas, sys; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def edit(**changes):
    def change(directory):
        path = directory / "metadata.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def truncate(name):
    def change(directory):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])

    return change


def other_genotype(directory):
    genotype = Genotype.load(directory / "genotype.json")
    # Without weights in either, so that the weights would still fit.
    swapped = {"max_pool_3x3": "avg_pool_3x3"}
    chosen = {key: swapped.get(name, name) for key, name in genotype.choices.items()}
    assert chosen != genotype.choices
    atomic.write_text(directory / "genotype.json", Genotype(genotype.space, chosen).to_json())


def resealed(directory):
    """Weights that are whole, and of another network."""
    metadata = json.loads((directory / "metadata.json").read_text())
    metadata["network"]["sizes"]["channels"] = 6
    (directory / "metadata.json").write_text(json.dumps(metadata))


DAMAGE = {
    "truncated weights": (truncate("weights.safetensors"), "weights.safetensors is damaged, or is not the one"),
    "truncated metadata": (truncate("metadata.json"), "metadata.json is damaged, or does not belong to an export"),
    "another genotype": (other_genotype, "genotype.json is damaged, or is not the one that was exported"),
    "weights of another size": (resealed, "weights.safetensors do not fit its network"),
    "another project": (edit(format="timm"), "metadata.json does not belong to an export of this project"),
    "another version": (edit(version=3), "metadata.json has version 3, expected 2; use the release"),
    "release 0.1.0": (edit(version=1), "was written by release 0.1.0, .*; use it with release 0.1.0, or retrain"),
    "no weights": (lambda path: (path / "weights.safetensors").unlink(), "has no weights.safetensors; export again"),
    "no network": (edit(network={}), "metadata.json is incomplete, or was changed"),
    "no digests": (edit(sha256=[]), "metadata.json is incomplete, or was changed"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_an_export_that_is_damaged_or_does_not_belong_together(case, exported):
    damage, message = DAMAGE[case]
    damage(exported)
    with pytest.raises(CheckpointError, match=message):
        nas.load(exported)


def test_a_package_that_an_export_names_is_not_trusted(exported):
    edit(network={"space": {"_name_": "os.system", "command": "true"}, "sizes": {}})(exported)
    with pytest.raises(ConfigError, match=r"'os\.system' .* outside of the packages that may be built"):
        nas.load(exported)
    edit(network={"space": {"_target_": "os.system", "command": "true"}, "sizes": {}})(exported)
    with pytest.raises(ConfigError, match=r"has no _name_: it was written by release 0\.1\.0"):
        nas.load(exported)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_pickle_with_code_is_refused(sealed, tmp_path, monkeypatch):
    import io

    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(
        {"format": "nas-checkpoint", "version": checkpoint_file.VERSION, "kind": "retrain", "config": Bomb()}, buffer
    )
    Path("checkpoint.pt").write_bytes(checkpoint_file.sealed(buffer.getvalue()) if sealed else buffer.getvalue())
    with pytest.raises(CheckpointError, match="carries code; nothing of it was run" if sealed else "is damaged"):
        nas.load("checkpoint.pt")
    assert not Path("exploded").exists()


@pytest.mark.parametrize("lacking", ["config", "genotype", "data", "network"])
def test_a_checkpoint_that_lacks_a_part_is_named(lacking, run, tmp_path):
    state = checkpoint_file.load(run / "retrain" / "checkpoint.pt", "retrain")
    path = tmp_path / "checkpoint.pt"
    checkpoint_file.save(path, "retrain", {name: part for name, part in state.items() if name not in ("kind", lacking)})
    with pytest.raises(CheckpointError, match=rf"checkpoint.pt is incomplete, or was changed \(KeyError: '{lacking}'"):
        nas.load(path)


def test_a_genotype_that_does_not_fit_the_weights(run, tmp_path):
    state = checkpoint_file.load(run / "retrain" / "checkpoint.pt", "retrain")
    edge = next(key for key, name in state["genotype"]["choices"].items() if name == "skip_connect")
    state["genotype"]["choices"][edge] = "sep_conv_3x3"
    checkpoint_file.save(tmp_path / "checkpoint.pt", "retrain", {name: state[name] for name in state if name != "kind"})
    with pytest.raises(
        CheckpointError, match=r"do not fit its network .* use the genotype it was trained with"
    ) as told:
        nas.load(tmp_path / "checkpoint.pt")
    assert len(told.value.problem) < 500  # and not the names of all weights


def test_what_is_no_run(tmp_path):
    with pytest.raises(
        CheckpointError, match="holds no run with a retrained network, and no export; give the directory"
    ):
        nas.load(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist; give the directory of a run or of an export"):
        nas.load(tmp_path / "nowhere")


def test_a_device_that_is_not_there(run):
    with pytest.raises(DeviceError, match="device 'cuda:99' is not on this machine"):
        nas.load(run, device="cuda:99")


@pytest.mark.parametrize("where", ["", "export"])
def test_nas_predict_gives_what_the_loaded_network_gives(run, where, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = Image.fromarray(torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy())
    image.save("a.png")
    (tmp_path / "b.png").write_bytes(b"x")
    command("predict", f"export={run / where}", "images=[a.png,b.png]", "out=found.csv", "top=1", "device=cpu")
    loaded = nas.load(run / where)
    spec = trained(run).spec
    x = spec.preparation(None, torch.device("cpu"))(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], None)
    with torch.no_grad():
        probability, index = loaded(x).softmax(dim=1).max(dim=1)
    rows = list(csv.reader(Path("found.csv").read_text().splitlines()))
    assert rows[1][:2] == ["a.png", spec.class_names[int(index)]]
    assert float(rows[1][2]) == pytest.approx(probability.item(), abs=1e-5)
    assert rows[2][:3] == ["b.png", "", ""]
    printed = capsys.readouterr()
    assert "written to found.csv" in printed.out
    assert "warning: b.png cannot be read as an image" in printed.err
    assert not (tmp_path / "runs").exists()
