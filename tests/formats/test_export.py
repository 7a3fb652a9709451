"""The exports of nas-run in all formats, made once and loaded as users load them; and what is not exported."""

import io
import json
import re
import resource
import signal
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli.conftest import TINY
from torch import nn

import nas
from nas.data.spec import DataSpec, ImageSpec
from nas.errors import ConfigError, DataError, OutputError
from nas.formats import subprocess_check, subprocess_main
from nas.formats.bfloat16 import BFloat16
from nas.formats.export import export
from nas.formats.export_trained import needed
from nas.formats.format import TOLERANCE, Artefact, Subject, UnavailableError
from nas.formats.onnx import Onnx, onnx_file
from nas.formats.program import Program, write_program
from nas.formats.standalone import Standalone
from nas.formats.weights import Weights, write_weights
from nas.runtime.runtime import Runtime
from nas.spaces.ops import Noise
from nas.storage.command_line import pasted
from nas.supernet.genotype import Genotype
from nas.training.task import Classification
from nas.training.trained import Trained, scoring_loader

ALL = "[weights,standalone,program,bfloat16,onnx]"
FILES = {"weights.safetensors", "model.py", "model.pt2", "model_bfloat16.pt2", "model.onnx"}
BATCHES = (1, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a tiny nas-run that exported everything."""
    from nas.cli.run import main

    directory = tmp_path_factory.mktemp("runs") / "run"
    arguments = [*TINY, f"formats={ALL}", f"hydra.run.dir={directory}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nas-run", *arguments])
        main()
    return directory


@pytest.fixture(scope="module")
def metadata(run):
    return json.loads((run / "export" / "metadata.json").read_text())


def trained(run):
    return Trained.load(run / "retrain" / "checkpoint.pt", allow=[], runtime=Runtime(device="cpu"))


# Runs the python blocks of a model card, in the directory of the card, without site-packages' editable installations.
RUN_CARD = """
import re, sys, warnings
warnings.simplefilter("ignore")
sys.dont_write_bytecode = True
sys.path.insert(0, "")
import torch
torch.set_num_threads(1)
given, outputs = sys.argv[1:]
found = {}
for title, code in re.findall(r"### (\\S+)\\n.*?```python\\n(.*?)```", open("MODEL_CARD.md").read(), re.DOTALL):
    if "nas.load" not in code:
        found[title] = []
        for x in torch.load(given):
            names = {"x": x}
            exec(code, names)
            found[title].append(torch.as_tensor(names["y"]))
assert not [name for name in sys.modules if name.startswith("nas.")]
torch.save(found, outputs)
"""


@pytest.mark.long
@torch.no_grad()
def test_the_code_of_the_model_card_runs_without_this_project(run, tmp_path):
    from nas.formats.export_trained import on_cpu

    network = on_cpu(trained(run).network)
    inputs = [torch.randn(count, 3, 8, 8) for count in BATCHES]
    torch.save(inputs, tmp_path / "inputs")
    done = subprocess.run(
        [sys.executable, "-S", "-c", RUN_CARD, tmp_path / "inputs", tmp_path / "outputs"],
        cwd=run / "export",
        env={"PYTHONPATH": sysconfig.get_paths()["purelib"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs = torch.load(tmp_path / "outputs", weights_only=True)
    assert outputs.keys() == FILES - {"weights.safetensors"}
    for file, got in outputs.items():
        for y, x in zip(got, inputs, strict=True):
            assert y.shape == (len(x), 3)
            if file == "model.py":
                assert torch.equal(y, network(x))
            else:
                assert torch.allclose(y, network(x), atol=0.1 if "bfloat16" in file else TOLERANCE)


def test_what_is_written(run, metadata):
    directory = run / "export"
    assert {path.name for path in directory.iterdir()} == FILES | {"genotype.json", "metadata.json", "MODEL_CARD.md"}
    assert (directory / "genotype.json").read_text() == (run / "genotype.json").read_text()
    assert metadata["artefacts"].keys() == FILES
    assert metadata["left_out"] == {}
    result = json.loads((run / "result.json").read_text())
    del result["discretisation_gap"]  # of the search, not of the network
    assert metadata["results"] == result
    assert DataSpec.from_dict(metadata["data"]) == trained(run).spec
    differences = {file: facts["largest_difference_to_network"] for file, facts in metadata["artefacts"].items()}
    assert differences["model.py"] == 0
    assert all(0 <= difference <= TOLERANCE for difference in differences.values())


def test_the_accuracy_of_bfloat16_is_stated(run, metadata):
    facts = metadata["artefacts"]["model_bfloat16.pt2"]
    assert 0 < facts["largest_difference_to_float32"] < 0.1
    program = torch.export.load(run / "export" / "model_bfloat16.pt2").module()
    network = trained(run)
    data = nas.settings.building.built(network.config["data"], "data").load()
    loader = scoring_loader(network, data, Runtime(device="cpu"))
    right = sum(int((program(x).argmax(1) == y).sum()) for x, y in loader.epoch(0))
    assert facts["test_accuracy"] == right / 16
    assert f"Test accuracy {right / 16:g}." in (run / "export" / "MODEL_CARD.md").read_text()


def test_the_model_card_tells_how_the_network_came_about(run):
    card = (run / "export" / "MODEL_CARD.md").read_text()
    manifest = json.loads((run / "manifest.json").read_text())
    result = json.loads((run / "result.json").read_text())
    for expected in (
        "# nas_bench_201 network for synthetic",
        f"`{pasted(['nas-run', *TINY, f'formats={ALL}', f'hydra.run.dir={run}'])}`",
        f"torch {torch.__version__}",
        f"- Seed: {manifest['seed']}",
        f"| parameters | {result['parameters']:,} |",
        f"| test accuracy | {result['test_accuracy']:.4g} |",
        "Settings of the search:",
        '"_name_": "gdas"',
        "- Classes: class_0, class_1, class_2",
        "float32 (batch, channels, height, width): pixels in [0, 1]",
    ):
        assert expected in card
    chosen = Genotype.load(run / "genotype.json").choices
    assert all(f"- `{key}`: {name}" in card for key, name in chosen.items())


def test_nas_export_writes_what_nas_run_did(run, metadata, tmp_path, monkeypatch, capsys):
    from nas.cli.export import main

    monkeypatch.setattr(sys, "argv", [
        "nas-export", f"checkpoint={run}/retrain/checkpoint.pt", "formats=standalone", "runtime.device=cpu",
        f"hydra.run.dir={tmp_path}/out",
    ])  # fmt: skip
    main()
    assert re.search(rf"exported to {tmp_path}/out: .*\bmodel\.py\b", capsys.readouterr().out)
    for file in ("model.py", "weights.safetensors", "genotype.json"):
        assert (tmp_path / "out" / file).read_bytes() == (run / "export" / file).read_bytes()
    again = json.loads((tmp_path / "out" / "metadata.json").read_text())
    same = ("origin", "settings", "network", "data", "results")
    assert {name: again[name] for name in same} == {name: metadata[name] for name in same}


def test_a_second_export_does_not_mix_with_the_first(run, monkeypatch, capsys):
    from nas.cli.export import main

    before = {path: path.read_bytes() for path in (run / "export").iterdir()}
    monkeypatch.setattr(sys, "argv", [
        "nas-export", f"checkpoint={run}/retrain/checkpoint.pt", "runtime.device=cpu", f"hydra.run.dir={run}/export",
    ])  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "export is not empty, expected a new one; set hydra.run.dir to another" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (run / "export").iterdir()} == before


# -- what is not exported


def subject(network, spec, x=None):
    x = torch.randn(4, *spec.input_shape) if x is None else x
    return Subject(
        network=network.eval(), examples=(x,), spec=spec, title="t", load="", measure=lambda network: {"score": 1.0}
    )


def exported(network, spec, directory, **formats):
    metadata = {
        "title": "t", "input": "i", "output": "o", "data": spec.to_dict(), "network": {}, "results": {}, "origin": None,
        "settings": {},
    }  # fmt: skip
    return export(
        subject(network, spec), formats=formats, genotype=Genotype("s", {}), metadata=metadata, directory=directory
    )


@torch.no_grad()
def subject_outputs(network, given):
    """What a fresh process gives for a file that is as the network."""
    return [network(batch["x"]) for batch in given["batches"]]


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))


@pytest.mark.parametrize("by", [1.0, float("nan")])
def test_nothing_is_written_if_a_file_differs(by, spec, tmp_path, monkeypatch):
    def differing(alone, with_project, *, batches, directory):
        assert (directory / "model.pt2").is_file()
        with torch.no_grad():
            return {file: [network(batch["x"]) + by for batch in batches] for file in alone}

    network = linear()
    monkeypatch.setattr(subprocess_check, "run", differing)
    with pytest.raises(
        OutputError, match=rf"model\.pt2, loaded in a fresh process, differs from the network by {by:g}"
    ):
        exported(network, spec, tmp_path / "out", program=Program())
    assert not (tmp_path / "out").exists()


class Broken:
    """Formats whose files do not do what they should, each in its own way."""

    def __init__(self, code):
        self.code = code

    def write(self, subject, directory):
        return Artefact(file="a", about="", needs=("torch",), code=self.code, network=subject.network)


def test_outputs_that_are_not_finite_are_compared_for_one_example_too(spec, tmp_path, monkeypatch):
    def nan_for_one(alone, with_project, *, batches, directory):
        found = subject_outputs(network, {"batches": batches})
        found[-1][:, 0] = torch.nan
        return dict.fromkeys(alone, found)

    network = linear()
    monkeypatch.setattr(subprocess_check, "run", nan_for_one)
    with pytest.raises(OutputError, match="differs from the network by nan"):
        exported(network, spec, tmp_path / "out", program=Program())
    monkeypatch.undo()
    network[1].bias.data[0] = -torch.inf  # a class that is never named
    done = exported(network, spec, tmp_path / "out", program=Program())
    assert "model.pt2" in {path.name for path in done.paths}


def test_the_fresh_process_knows_nothing_of_this_project_and_names_what_fails(spec, tmp_path):
    batches = [{"x": torch.ones(2)}]
    results = subprocess_check.run(
        {"right": "y = 2 * x", "project": "import nas.spaces.ops", "nothing": "1 / 0", "none": "z = x"},
        {"with it": "import nas\ny = x if 'nas.spaces.ops' not in __import__('sys').modules else None"},
        batches=batches,
        directory=tmp_path,
    )
    assert torch.equal(results["right"][0], torch.full((2,), 2.0))
    assert torch.equal(results["with it"][0], torch.ones(2))
    assert results["project"] == "ImportError: it imports this project, which it must not need"
    assert results["nothing"] == "ZeroDivisionError: division by zero"
    assert results["none"] == "KeyError: 'y'"
    with pytest.raises(OutputError, match="the process that checks the exported files stopped"):
        subprocess_check.run({"exit": "import os; os._exit(3)"}, {}, batches=batches, directory=tmp_path)


def test_a_file_that_cannot_be_loaded(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess_check, "run", lambda *args, **kwargs: {"a": "ValueError: no"})
    with pytest.raises(OutputError, match=r"a cannot be loaded in a fresh process \(ValueError: no\)"):
        exported(linear(), spec, tmp_path / "out", broken=Broken(""))
    assert not (tmp_path / "out").exists()


class ByItsValues(nn.Module):
    """Cannot be traced, for its sum decides."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 3)

    def forward(self, x):
        return self.linear(x.flatten(1) if x.sum() > 0 else -x.flatten(1))


class Untruthful(nn.Module):
    """Computes something else while it is traced."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 3)

    def forward(self, x):
        return self.linear(x.flatten(1)) + (1 if isinstance(x, torch.Tensor) else 0)


def test_a_format_that_a_network_cannot_be_had_in_is_named_and_the_others_are_written(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(
        subprocess_check, "run", lambda alone, project, batches, directory: {
            file: [network(batch["x"]) for batch in batches] for file in (*alone, *project)
        }
    )  # fmt: skip
    network = ByItsValues()
    done = exported(network, spec, tmp_path / "out", weights=Weights(), standalone=Standalone(), program=Program())
    assert done.left_out.keys() == {"standalone", "program"}
    assert done.left_out["standalone"].startswith(
        "this network cannot be written as source: the forward of ByItsValues"
    )
    assert done.left_out["program"].startswith("torch.export cannot trace the network")
    assert [path.name for path in done.paths] == [
        "MODEL_CARD.md",
        "genotype.json",
        "weights.safetensors",
        "metadata.json",
    ]
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["left_out"] == done.left_out
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "Not there: program, because torch.export cannot trace" in card
    assert "the checkpoint was not in the directory of its run" in card
    with pytest.raises(OutputError, match=r"cannot be exported as program \(program: torch\.export cannot trace"):
        exported(network, spec, tmp_path / "none", program=Program())
    assert not (tmp_path / "none").exists()


def test_a_program_that_torch_itself_cannot_load_is_left_out(tmp_path):
    network = nn.Sequential()
    network.add_module("class", nn.Linear(3, 2))
    with pytest.raises(UnavailableError, match=r"cannot load its own program \(SyntaxError: .*; rename a part of the"):
        write_program(network.eval(), (torch.zeros(2, 3),), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


class WithoutHeads(nn.Module):
    """Attention on three dimensions, which torch.onnx does not know."""

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_why_torch_cannot_write_onnx_is_said():
    with pytest.raises(UnavailableError, match="AssertionError: only 4D query, key, and value are supported"):
        onnx_file(WithoutHeads(), (torch.zeros(2, 3, 4),), ["x"])


class Fails:
    """Formats that leave a file behind as they stop."""

    def __init__(self, error):
        self.error = error

    def write(self, subject, directory):
        (directory / "half").write_text("")
        raise self.error


def test_an_error_that_nobody_foresaw_leaves_out_one_format(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(
        subprocess_check, "run", lambda *args, **kwargs: {"weights.safetensors": subject_outputs(network, kwargs)}
    )
    network = linear()
    done = exported(network, spec, tmp_path / "out", fails=Fails(TypeError("of\ntwo lines")), weights=Weights())
    assert done.left_out == {"fails": "making and trying it failed (TypeError: of two lines)"}
    assert {path.name for path in done.paths} == {
        "MODEL_CARD.md", "genotype.json", "metadata.json", "weights.safetensors"
    }  # fmt: skip
    for error in (OSError(28, "No space left on device"), DataError("no data", fix="find some")):
        with pytest.raises((OutputError, DataError), match=r"No space left|no data; find some"):
            exported(network, spec, tmp_path / "none", fails=Fails(error), weights=Weights())
    assert not (tmp_path / "none").exists()


class Counts(nn.Module):
    """Has a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(3 * 8 * 8, 3), 0

    def forward(self, x):
        return self.linear(x.flatten(1))

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def test_a_state_that_is_not_of_tensors_alone_leaves_out_what_safetensors_is_a_part_of(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(
        subprocess_check, "run", lambda *args, **kwargs: {"model.pt2": subject_outputs(network, kwargs)}
    )
    network = Counts()
    formats = {"weights": Weights(), "standalone": Standalone(), "program": Program()}
    done = exported(network, spec, tmp_path / "out", **formats)
    assert (
        done.left_out["weights"] == "_extra_state of the network's state is a dict, and safetensors holds tensors only"
    )
    assert done.left_out.keys() == {"weights", "standalone"}
    assert {path.suffix for path in done.paths} == {".md", ".json", ".pt2"}
    with pytest.raises(OutputError, match=r"holds tensors only\); .* choose others, e\.g\. formats=\[program\]"):
        exported(network, spec, tmp_path / "none", weights=Weights())


class Centred(nn.Module):
    """Two buffers that no state dict holds: a running average, and a table that is made when it is needed."""

    def __init__(self):
        super().__init__()
        self.linear, self.table = nn.Linear(3 * 8 * 8, 3), None
        self.register_buffer("average", torch.zeros(3), persistent=False)

    def forward(self, x):
        if self.table is None:
            del self.table
            self.register_buffer("table", torch.arange(3.0), persistent=False)
        y = self.linear(x.flatten(1)) + self.table
        if self.training:
            self.average.lerp_(y.detach().mean(0), 0.5)
        return y - self.average


def test_weights_that_do_not_give_the_network_are_left_out(spec, tmp_path):
    x = torch.randn(4, 3, 8, 8)
    network = Centred().eval()
    network(x)
    assert needed(network, (x,), lambda: Centred().eval()) == ()  # what it is made with, or makes itself
    network.train()(x)
    assert needed(network.eval(), (x,), lambda: Centred().eval()) == ("average", "table")
    given = replace(subject(network, spec, x), unsaved=lambda: ("average",))
    with pytest.raises(UnavailableError, match="without average, which training changed and no state dict holds"):
        Weights().write(given, tmp_path)
    with pytest.raises(
        UnavailableError, match="Centred holds a tensor at table that is not a parameter or buffer of its"
    ):
        Standalone().write(given, tmp_path)
    assert list(tmp_path.iterdir()) == []
    Program().write(given, tmp_path)
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(x), network(x))


def test_source_that_does_not_run_leaves_out_one_format(spec, tmp_path, monkeypatch):
    monkeypatch.setattr("nas.formats.standalone.source", lambda *args, **kwargs: "def build():\n    return unknown\n")
    with pytest.raises(OutputError, match=r"standalone: making and trying it failed \(NameError: name 'unknown' is"):
        exported(linear(), spec, tmp_path / "out", standalone=Standalone())


def test_files_are_utf_8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess_check, "run", lambda *args, **kwargs: {"model.py": subject_outputs(network, kwargs)})
    monkeypatch.setattr(io, "text_encoding", lambda encoding, stacklevel=2: encoding or "ascii")
    named = DataSpec(name="Bl\u00fcten", input_shapes=((3, 8, 8),), class_names=("\u00c4hre", "\u82b1", "c"))
    network = linear()
    exported(network, named, tmp_path / "out", standalone=Standalone())
    for file in ("model.py", "MODEL_CARD.md"):
        assert "\u00c4hre" in (tmp_path / "out" / file).read_text(encoding="utf-8")


def test_a_fresh_process_takes_code_that_is_not_ascii(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "text_encoding", lambda encoding, stacklevel=2: encoding or "ascii")
    assert subprocess_main.outputs("y = len('\u82b1')", [{}]) == [torch.tensor(1)]


def test_source_that_is_not_the_network_is_not_written(spec, tmp_path):
    with pytest.raises(OutputError, match="this network computes something else while it is traced"):
        exported(Untruthful(), spec, tmp_path / "out", standalone=Standalone())
    assert not (tmp_path / "out").exists()


def test_a_program_in_bfloat16_may_round_in_another_order(spec, tmp_path):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()  # has a fast path that no program has
    given = Subject(
        network=layer,
        examples=(torch.randn(4, 5, 8),),
        spec=spec,
        title="t",
        load="",
        measure=lambda network: {},
    )
    artefact = BFloat16().write(given, tmp_path)
    program = torch.export.load(tmp_path / artefact.file).module()
    with torch.no_grad():
        difference = (program(*given.examples) - artefact.network(*given.examples)).abs().max()
    assert difference <= artefact.tolerance
    assert TOLERANCE < artefact.tolerance < 0.1


class Dropping(nn.Sequential):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


@pytest.mark.parametrize(
    ("network", "said"), [(Dropping(*linear()), True), (nn.Sequential(nn.Dropout(), *linear()), False)]
)
def test_source_that_trains_otherwise_than_the_network_says_so(network, said, spec, tmp_path):
    artefact = Standalone().write(subject(network.eval(), spec), tmp_path)
    assert ("in training mode it computes something else" in artefact.about) == said
    assert not network.training


def test_of_a_random_network_there_are_no_files(spec, tmp_path):
    network = nn.Sequential(Noise(3, 3, 1, True), *linear())
    given = subject(network, spec, torch.randn(2, 3, 8, 8))
    with pytest.raises(UnavailableError, match="this network computes something else while it is traced"):
        Standalone().write(given, tmp_path)
    done = exported(network, spec, tmp_path / "out", standalone=Standalone(), weights=Weights())
    reason = "the network gives other outputs each time it runs"
    assert done.left_out == {"standalone": reason, "weights": reason}
    assert {path.name for path in done.paths} == {"genotype.json", "metadata.json", "MODEL_CARD.md"}
    assert f"Not there: weights, because {reason}." in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_a_missing_package_is_named_with_its_extra_before_anything_is_done(tmp_path, monkeypatch, capsys):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else find(name, *rest))
    with pytest.raises(ConfigError, match="formats=onnx needs onnx, onnxscript, onnxruntime"):
        Onnx()
    from nas.cli.run import main

    arguments = [argument for argument in TINY if not argument.startswith("formats")]
    monkeypatch.setattr(sys, "argv", ["nas-run", *arguments, "formats=[onnx]", f"hydra.run.dir={tmp_path}/out"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == (
        "error: formats=onnx needs onnx, onnxscript, onnxruntime, which is not installed; pip install "
        "'gumbel-nas[onnx]', or choose formats without onnx\n"
    )
    assert not (tmp_path / "out").exists()


def test_images_of_a_size_that_the_network_cannot_take(spec):
    class Bundle:
        spec = ImageSpec(
            name="large", input_shapes=((3, 9, 9),), class_names=("a", "b", "c"), mean=(0.5,) * 3, std=(0.5,) * 3
        )

    network = Trained(linear(), Genotype("s", {}), spec, Classification(), {})
    expected = re.escape("the network cannot take inputs of shape (3, 9, 9), expected e.g. (3, 8, 8) as in training")
    with pytest.raises(DataError, match=expected):
        scoring_loader(network, Bundle, Runtime(device="cpu"))


def test_every_format_that_ships_is_tested_here():
    shipped = {path.stem for path in (Path(nas.settings.configuration.directory()) / "formats").glob("*.yaml")}
    assert shipped == set(ALL.strip("[]").split(","))


class Refused:
    """A format whose library meets a full disk, in its own words."""

    def write(self, subject, directory):
        (directory / "half").touch()
        raise RuntimeError("cannot serialise: No space left on device (os error 28)")


def test_a_full_disk_says_nothing_about_a_format(spec, tmp_path):
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\); free some space"):
        exported(linear(), spec, tmp_path / "out", program=Program(), refused=Refused())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", ["program", "weights"])
def test_a_full_disk_is_an_error_of_pythons(write, spec, tmp_path):
    """torch itself would abort the process, and safetensors has errors of its own."""
    form = {"program": Program, "weights": Weights}[write]()
    given, limit = subject(linear(), spec), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            form.write(given, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)


def test_weights_that_are_merged_for_evaluation_are_not_written(tmp_path):
    class Merging(nn.Linear):
        def train(self, mode=True):
            if self.training != mode:
                self.weight.data += -1 if mode else 1
            return super().train(mode)

    network = nn.Sequential(Merging(2, 2)).eval()
    with pytest.raises(UnavailableError, match=r"own train\(\) changes 0\.weight, as LoRA that is merged"):
        write_weights(network, tmp_path)
    assert not network.training
    assert not list(tmp_path.iterdir())
