"""Hostile files can only make objects of the table. They cannot hang, take more memory, or write elsewhere.

Each attack changes a good file and gives it a valid checksum: only the content is hostile.
"""

import functools
import importlib
import inspect
import json
import os
import pkgutil
import socket
import time
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import nas
from nas.cli.resume import resumed
from nas.data.image_file import Share, pillow_warnings, read_header, read_pixels
from nas.data.image_folder import ImageFolder
from nas.data.spec import ImageSpec
from nas.errors import CheckpointError, ConfigError, DataError, GenotypeError, NasError, OutputError
from nas.formats.export import digest
from nas.formats.model_card import model_card
from nas.methods.latency_table import LatencyTable
from nas.runtime.runtime import Runtime
from nas.settings import configuration
from nas.settings.building import built, described, foreign
from nas.settings.configuration import read_yaml
from nas.settings.names import NAME, PARTIAL, TABLE, TARGET, TARGETS, to_names, to_targets
from nas.spaces.custom import Custom
from nas.spaces.nas_bench_201_table import NasBench201Table
from nas.storage import atomic, checkpoint_file
from nas.storage.metrics_log import read_lines
from nas.storage.run_directory import RunDirectory, read_manifest, recorded
from nas.storage.tensorboard_tracker import TensorBoard
from nas.supernet.genotype import Genotype
from nas.training import network_size
from nas.training.network_size import as_large_as
from nas.training.task import Custom as CustomTask
from nas.training.trained import Trained
from nas.untrusted import escaping, regular_file

OPS = {"none": {NAME: "none", PARTIAL: True}, "nor_conv_3x3": {NAME: "relu_conv_bn", PARTIAL: True, "kernel_size": 3}}
SPACE = {NAME: "nas_bench_201", "ops": OPS, "channels": 4, "cells": 1}
SPEC = ImageSpec(
    name="tiny", input_shapes=((3, 8, 8),), class_names=("a", "b"), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
)
EDGES = ("0-1", "0-2", "1-2", "0-3", "1-3", "2-3")
GENOTYPE = Genotype("nas_bench_201", {f"cell/{edge}": "nor_conv_3x3" for edge in EDGES})
TOUCH = r"\${oc.create:{_target_:pathlib.Path.touch,self:{_target_:pathlib.Path,_args_:[harmed]}}}"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return built(SPACE, "space").network(SPEC, GENOTYPE).eval()


@pytest.fixture
def export(network, tmp_path, monkeypatch):
    """A function that writes an export, with changes of its metadata's network."""
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)

    def write(**changes):
        directory = tmp_path / "export"
        directory.mkdir(exist_ok=True)
        (directory / "genotype.json").write_text(GENOTYPE.to_json())
        save_file(network.state_dict(), directory / "weights.safetensors")
        metadata = {
            "format": "nas-export",
            "version": 2,
            "data": SPEC.to_dict(),
            "network": {"space": SPACE, "sizes": {}, "memory_format": "contiguous", **changes},
            "sha256": {name: digest(directory / name) for name in ("genotype.json", "weights.safetensors")},
        }
        (directory / "metadata.json").write_text(json.dumps(metadata))
        return directory

    return write


@pytest.fixture
def saved(network, tmp_path, monkeypatch):
    """A function that writes a checkpoint, with changes of its configuration and of its state."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint_file, "check_plain", lambda state: None)  # as a stranger would

    def write(state=None, **changes):
        configuration = {
            "space": SPACE,
            "task": {NAME: "classification"},
            "data": {NAME: "synthetic"},
            "retrain": {"network": {}},
            "runtime": {"memory_format": "contiguous"},
            **changes,
        }
        content = {"config": configuration, "data": SPEC.to_dict(), "genotype": GENOTYPE.to_dict()}
        path = tmp_path / "checkpoint.pt"
        checkpoint_file.save(path, "retrain", {**content, "network": network.state_dict(), **(state or {})})
        return path

    return write


def evaluated(path):
    return Trained.load(path, allow=[], runtime=Runtime(device="cpu", memory_format="contiguous"))


def test_the_files_that_the_attacks_begin_with_are_good(export, saved, network):
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for loaded in (nas.load(export()), nas.load(saved()), evaluated(saved()).network):
            assert torch.equal(loaded(x), network(x))


# -- the table


def walk(node):
    if isinstance(node, dict):
        yield from node.items()
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def test_the_table_has_what_the_configurations_name_and_nothing_that_is_not_there():
    named = set()
    for path in configuration.directory().rglob("*.yaml"):
        named |= {value for key, value in walk(yaml.safe_load(path.read_text())) if key == TARGET}
    ours = {target for target in TARGETS if not target.startswith("torch.")}
    named.remove("nas.cli.sweep.Beginning")  # a callback that Hydra makes, of its own configuration
    assert {target for target in named if target.startswith("nas.")} == ours
    assert named - ours - {"???"} <= set(TARGETS)
    assert len(TARGETS) == sum(map(len, TABLE.values()))
    for target in TARGETS:
        module, _, name = target.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name)), target


def everything_public():
    """The import paths of all functions and classes of the project, and of the methods of the classes."""
    for info in pkgutil.walk_packages(nas.__path__, "nas."):
        if info.name == "nas.formats.subprocess_main":  # a program
            continue
        module = importlib.import_module(info.name)
        for name, thing in list(vars(module).items()):
            if inspect.isroutine(thing) or inspect.isclass(thing):
                yield f"{info.name}.{name}"
            if inspect.isclass(thing) and thing.__module__.startswith("nas."):
                yield from (f"{info.name}.{name}.{method}" for method, one in vars(thing).items() if callable(one))


def test_nothing_but_the_table_can_be_reached_from_a_file():
    paths = sorted(set(everything_public()))
    assert len(paths) > 1000
    for path in paths:
        plains = [(group, {NAME: path}) for group in ("space", "task", "data")]
        if path not in TARGETS:
            plains += [
                ("space", {NAME: "custom", "factory": path}),
                ("data", {NAME: "custom", "augment": {NAME: path}}),
            ]
        if (last := path.rpartition(".")[2]) not in TABLE["space"]:
            plains += [("space", {NAME: last})]
        for group, plain in plains:
            with pytest.raises(ConfigError):
                built(plain, group)


@pytest.mark.parametrize(
    "plain",
    [
        {TARGET: "nas.spaces.NasBench201", "ops": OPS},
        {**SPACE, "ops": {"none": {TARGET: "nas.spaces.Zero", PARTIAL: True}}},
        {**SPACE, "x": {NAME: "tracker/jsonl", "directory": "."}},
        {**SPACE, "ops": {"x": {NAME: "tracker/jsonl", "directory": "."}}},
        {**SPACE, "tracker": {NAME: "jsonl", "directory": "."}},
        {NAME: "tracker/jsonl", "directory": "."},
        {**SPACE, "ops": {"x": {NAME: "digits"}}},
        {**SPACE, "_args_": [1]},
        {**SPACE, PARTIAL: "yes"},
        {**SPACE, NAME: ["nas_bench_201"]},
        {**SPACE, "channels": (4,)},
        {**SPACE, "channels": "4"},
        {**SPACE, "channels": 10**400},
        {**SPACE, "unknown": 1},
        "nas_bench_201",
        functools.reduce(lambda inner, _: [inner], range(500), []),
        functools.reduce(lambda inner, _: {"a": inner, "b": inner}, range(25), {}),
    ],
    ids=range(17),
)
def test_what_no_file_can_say(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as told:
        built(plain, "space")
    assert len(str(told.value)) < 500
    assert list(tmp_path.iterdir()) == []


def test_where_a_run_writes_is_not_read():
    for group, key in (("tracker", "directory"), ("saving", "path")):
        name = next(iter(TABLE[group]))
        with pytest.raises(ConfigError, match=rf"sets {group}\.{key}, which no file can set"):
            to_targets({group: {NAME: name, PARTIAL: True, key: "/elsewhere"}}, source="config.yaml")


@pytest.mark.parametrize("command", ["run", "retrain"])
def test_names_and_targets_are_inverse(command):
    from hydra import compose, initialize_config_dir

    from nas.settings.schemas import register_schemas

    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
        chosen = ["space=darts", "ops=s1", "regulariser=[entropy,macs]", "policy@retrain.policy=rand_augment", "name=x"]
        composed = compose(command, [*chosen, *["genotype=x"] * (command == "retrain"), "regulariser.macs.target=1"])
    plain = OmegaConf.to_container(composed, resolve=True)
    named = to_names(plain)
    assert "_target_" not in str(named)
    assert "nas." not in str(named)
    assert to_targets(named, source="there") == plain
    assert named["retrain"]["optim"][NAME] == "sgd"
    assert named["ops"]["ops"]["max_pool_3x3"] == {NAME: "search_normalised", "op": {NAME: "max_pool", PARTIAL: True}}


# -- objects and what describes them


def own_loss(outputs, targets, scale=1.0):
    return (outputs - targets).abs().mean() * scale


def own_model(width=3):
    return torch.nn.Linear(width, 1)


def test_objects_come_back_from_their_descriptions(darts):
    for group, thing in (("space", built(SPACE, "space")), ("space", darts), ("data", ImageFolder(root="images"))):
        plain = described(thing)
        json.dumps(plain)
        again = built(plain, group)
        assert type(again) is type(thing)
        assert described(again) == plain
    assert described(built(SPACE, "space"))[NAME] == "nas_bench_201"
    assert described(functools.partial(torch.optim.SGD, lr=0.1)) == {NAME: "sgd", PARTIAL: True, "lr": 0.1}


def test_a_user_s_own_is_recorded_and_only_built_if_it_is_allowed():
    task = CustomTask(loss=functools.partial(own_loss, scale=2.0), metric=own_loss, name="m", higher_is_better=False)
    for group, thing, own in (
        ("space", Custom(factory=own_model, arguments={"width": 5}), [own_model]),
        ("task", task, [own_loss]),
    ):
        plain = json.loads(json.dumps(described(thing)))
        assert foreign(plain) == [__name__.partition(".")[0]]
        with pytest.raises(ConfigError, match=r"outside of the packages that may be built \(none\)"):
            built(plain, group)
        again = built(plain, group, allow=own)
        assert described(again) == described(thing)
    assert again.loss(torch.ones(2), torch.zeros(2)) == 2
    with pytest.raises(ConfigError, match="cannot be recorded"):
        described(object())


# -- code in files


def test_code_in_the_metadata_of_an_export(export):
    for space in (
        {**SPACE, "x": TOUCH},
        {**SPACE, "channels": TOUCH},
        {**SPACE, "ops": {TOUCH: OPS["none"]}},
        {**SPACE, "x": {TARGET: "nas.settings.signature_check.parameters_of", "target": "export.payload"}},
        {**SPACE, "x": {NAME: "nas.settings.signature_check.parameters_of", "target": "export.payload"}},
    ):
        directory = export(space=space)
        (directory / "payload.py").write_text("open('harmed', 'w')")
        with pytest.raises(NasError):
            nas.load(directory)
        assert not Path("harmed").exists()


def test_the_environment_is_not_read(export, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(NasError) as told:
        nas.load(export(space={**SPACE, "channels": "${oc.env:SECRET}"}))
    assert "hunter2" not in str(told.value)


def test_code_in_a_checkpoint(saved):
    write = {TARGET: "nas.formats.program.write_program", "path": "harmed"}
    for changes in (
        {"task": {NAME: "classification", "x": (TOUCH,)}},
        {"task": {NAME: "classification", "x": [TOUCH]}},
        {"task": {NAME: "classification", "x": write}},
        {"task": {NAME: "nas.storage.atomic.write_text", "path": "harmed", "text": ""}},
        {
            "space": {
                NAME: "custom",
                "factory": "nas.storage.atomic.write_text",
                "arguments": {"path": "harmed", "text": ""},
            }
        },
    ):
        with pytest.raises(NasError) as told:
            evaluated(saved(**changes))
        assert "\n" not in str(told.value)
        assert not Path("harmed").exists()


@pytest.mark.parametrize("read", [nas.load, evaluated])
def test_release_0_1_0_wrote_it(read, saved, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_file, "VERSION", 1)
        path = saved()
    with pytest.raises(CheckpointError, match=r"checkpoint.pt was written by release 0\.1\.0, .*; use it with release"):
        read(path)


# -- small files that hurt

BOMB = functools.reduce(lambda inner, _: {"a": inner, "b": inner}, range(40), {"a": 1})


@pytest.mark.parametrize("key", ["search", "space", "task"])
def test_references_that_unfold_in_a_checkpoint(saved, key):
    path = saved(**{key: BOMB})
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="damaged, or not a checkpoint"):
        evaluated(path)


def test_a_checkpoint_that_contains_itself(saved):
    loop = {}
    loop["a"] = loop
    with pytest.raises(CheckpointError):
        evaluated(saved(search=loop))


@pytest.mark.parametrize(
    "state",
    [
        {"network": {"w": torch.zeros(1).expand(10**10)}},
        {
            "network": {
                "w": torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (10**10,), check_invariants=False)
            }
        },
        {"network": bytearray(10)},
        {"epoch": 10**5000},
        {"genotype": {"format": "nas-genotype", "version": 10**4000}},
    ],
    ids=["expanded", "sparse", "bytearray", "huge integer", "huge version"],
)
def test_values_that_hurt_in_a_checkpoint(saved, state):
    with pytest.raises(CheckpointError, match=r"damaged, or not a checkpoint|carries code") as told:
        evaluated(saved(state))
    assert len(str(told.value)) < 500


@pytest.mark.parametrize("sizes", [{"channels": 99_999}, {"cells": 99_999}, {"nodes": 99_999}, {"cells": 10**9}])
def test_a_network_that_is_larger_than_its_weights(export, saved, sizes, monkeypatch):
    monkeypatch.setattr(network_size, "MODULES_PER_TENSOR", 1)  # so that the machine of the tests may be slow
    with pytest.raises(NasError, match=r"far larger than its weights|must be at most 100000, got 1000000000"):
        nas.load(export(sizes=sizes))
    with pytest.raises(NasError, match=r"far larger than its weights|must be at most 100000, got 1000000000"):
        evaluated(saved(space={**SPACE, **sizes}))


def test_networks_of_other_threads_are_not_counted():
    from concurrent.futures import ThreadPoolExecutor

    def wide():
        return torch.nn.Linear(5000, 5000, device="meta").weight.numel()

    with as_large_as({}, source="x"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(wide).result() == 25_000_000
        with pytest.raises(CheckpointError):
            wide()
    assert wide() == 25_000_000


def bound_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # for a socket's name is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def holes(path):
    with path.open("wb") as stream:
        stream.truncate(2**40)


STRANGE = {
    "FIFO": os.mkfifo,
    "socket": bound_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "directory": lambda path: path.mkdir(),
    "holes": holes,
}
READERS = {
    "genotype": (Genotype.load, GenotypeError),
    "checkpoint": (functools.partial(checkpoint_file.load, kind="retrain"), CheckpointError),
    "table": (lambda path: NasBench201Table(table=str(path)), DataError),
    "latency": (LatencyTable.load, ConfigError),
    "config.yaml": (read_yaml, OutputError),
    "manifest.json": (lambda path: read_manifest(path.parent), OutputError),
    "metrics": (read_lines, OutputError),
    "image.png": (read_header, DataError),
}


@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file(reader, what, tmp_path):
    path = tmp_path / reader
    STRANGE[what](path)
    read, error = READERS[reader]
    with pytest.raises(error) as told:
        read(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.parametrize("name", ["metadata.json", "genotype.json", "weights.safetensors"])
def test_what_is_no_file_in_an_export(name, what, export):
    directory = export()
    (directory / name).unlink()
    STRANGE[what](directory / name)
    with pytest.raises(CheckpointError) as told:
        nas.load(directory)
    assert "\n" not in str(told.value)


def test_a_file_that_grows_while_it_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert regular_file.read(path, limit=3) == b"abc"
    with pytest.raises(OSError, match="it has 3 bytes, expected at most 2"):
        regular_file.read(path, limit=2)
    if Path("/proc/self/environ").exists():  # of size 0, says the system
        with pytest.raises(OSError, match="more than 1 bytes"):
            regular_file.read("/proc/self/environ", limit=1)


UNFOLDING = "x0: &x0 {a: 1, b: 2}\n" + "".join(f"x{i}: &x{i} {{a: *x{i - 1}, b: *x{i - 1}}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (UNFOLDING, "it has aliases"),
        ("a: &b 1", "it has aliases"),
        ("a: !!python/object/apply:os.system [x]", "it has tags"),
        ("a: !!str b", "it has tags"),
        ("[" * 10_000 + "]" * 10_000, "nested more than 32 levels|is not YAML"),
        ("a:\n" + "".join(" " * i + "-\n" for i in range(1, 100)), "nested more than 32 levels"),
        ("a: 2024-01-01", "a value of type date"),
        ("? [1, 2]\n: 3", "cannot be read as YAML|is not YAML"),
        ("a: " + "9" * 200_000, "cannot be read"),
        ("a: " + "9" * 100, "an integer of more than 64 bits"),
        ("{", "is not YAML"),
        ("a" * 300_000, "it has 300000 bytes, expected at most 250000"),
        ("a: 1" + ":59" * 15_000, "it has a number of too many digits"),
    ],
    ids=range(13),
)
def test_a_configuration_that_hurts(text, reason, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(OutputError, match=reason) as told:
        read_yaml(tmp_path / "config.yaml")
    assert "\n" not in str(told.value)


def test_what_is_written_is_read(tmp_path):
    values = [1, -2.5, 1e-05, 1e300, "1e-3", "2024-01-01", "yes", "~", "a: b", "é\u202e", None, True, [], {}, "0x1", ""]
    plain = {"seed": 1, "list": values, "map": {str(index): value for index, value in enumerate(values)}}
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(OmegaConf.create(plain)))
    assert OmegaConf.to_container(read_yaml(tmp_path / "config.yaml")) == plain


def test_where_data_are_fetched_to_is_not_read(tmp_path):
    stored = {"seed": 1, "data": {NAME: "cifar10", "root": "/elsewhere", "download": True}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    (tmp_path / "manifest.json").write_text('{"status": "interrupted"}')
    own = {"resume": str(tmp_path), "may_change": [], "allow_targets": [], "lock": True}
    own |= {"retry_failed": False, "dry_run": False}
    given = OmegaConf.create({**own, "seed": 1})
    assert resumed(given, OmegaConf.create({"seed": 1}), []).data.download is False
    given.data = {TARGET: TABLE["data"]["cifar10"], "root": "/elsewhere", "download": True}
    assert resumed(given, given, ["data.download=true"]).data.download is True


@pytest.mark.parametrize(
    "text",
    [
        '{"status": "running", "wall_seconds": ' + "9" * 4000 + "}",
        '{"status": "running", "wall_seconds": true}',
        '{"status": "running", "command": [1]}',
        '{"status": "running", "versions": []}',
        '{"status": "running", "versions": {"a": [1]}}',
        '{"status": "running", "seed": "x"}',
        '{"status": "running", "x": ' + "[" * 400 + "]" * 400 + "}",
        '{"status": "running", "x": ' + "[" * 400_000,
    ],
    ids=range(8),
)
def test_a_manifest_of_other_types(text, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(OutputError):
        read_manifest(tmp_path)
    assert recorded(tmp_path) is None


@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN", "9" * 400, "9" * 5000, "[1]", '"x"', "{}"], ids=range(8))
@pytest.mark.parametrize("key", ["loss", "epoch"])
def test_metrics_of_huge_numbers(key, value, tmp_path):
    good = '{"stage": "search", "epoch": 0, "loss": 1.0}\n'
    numbers = {"epoch": "1", "loss": "1.0", key: value}
    bad = f'{{"stage": "search", "epoch": {numbers["epoch"]}, "loss": {numbers["loss"]}}}\n'
    (tmp_path / "metrics.jsonl").write_text(good + bad)
    assert read_lines(tmp_path / "metrics.jsonl") == ([json.loads(good)], False)


# -- images


def test_a_program_is_not_started_for_an_image(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it was started"))
    path = tmp_path / "harmless.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(harmed) (w) file\n")
    for read in (read_header, functools.partial(read_pixels, channels=3, size=None)):
        with pillow_warnings(), pytest.raises(DataError, match="none of the formats that are read"):
            read(path)


def test_many_large_images_at_once_wait_for_each_other():
    from concurrent.futures import ThreadPoolExecutor

    share, taken, most = Share(100), [], []

    def decode(part):
        with share.take(part):
            taken.append(min(part, 100))
            most.append(sum(taken))
            time.sleep(0.001)
            taken.remove(min(part, 100))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [60, 30, 500, 10, 40] * 4))
    assert max(most) <= 100
    assert taken == []


def test_an_image_of_too_many_pixels(tmp_path):
    from PIL import Image

    Image.new("1", (2**13, 2**13 + 1)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 50_000
    with pillow_warnings(), pytest.raises(DataError, match="too many pixels to decode safely"):
        read_pixels(tmp_path / "bomb.png", channels=3, size=8)


# -- links


@pytest.fixture
def elsewhere(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.txt").write_text("years of work")
    (tmp_path / "elsewhere" / ".left.1.tmp").write_text("mine")
    yield tmp_path / "elsewhere"
    assert (tmp_path / "elsewhere" / "thesis.txt").read_text() == "years of work"
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


@pytest.mark.parametrize("name", ["search", "retrain"])
def test_a_stage_is_not_written_through_a_link(name, elsewhere, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text('{"status": "running"}')
    (run / name).symlink_to(elsewhere)
    runtime = Runtime(device="cpu")
    with RunDirectory(run, config="", command=[], seed=0, runtime=runtime, resume=True) as out:  # noqa: SIM117
        with pytest.raises(OutputError, match=f"{name} is a link, expected a directory"):
            out.subdirectory(name)


def test_files_are_not_written_through_links(elsewhere, tmp_path):
    run, thesis = tmp_path / "run", elsewhere / "thesis.txt"
    run.mkdir()
    for name in ("config.yaml", f".config.yaml.{os.getpid()}.nas.tmp", "events.out.tfevents.1.nas", "metrics.jsonl"):
        (run / name).symlink_to(thesis)
    atomic.write_text(run / "config.yaml", "new")
    with TensorBoard(directory=run) as tracker:
        tracker.log("search", 0, {"loss": 1.0})
    assert (run / "config.yaml").read_text() == "new"
    assert not any(path.is_symlink() for path in run.iterdir())


# -- text

HOSTILE = "\x1b[2J\u202eevil`</td><script>|[x](http://a.b)![y](z)\n# title **b** _c_ snake_case"


def test_text_for_a_terminal():
    shown = escaping.printable(HOSTILE)
    assert shown.isprintable()
    assert shown.startswith(r"\x1b[2J\u202eevil")
    assert escaping.printable("Zoë 日本語 a\u200cb") == "Zoë 日本語 a\u200cb"
    assert escaping.printable("a\udcffb") == r"a\udcffb"
    assert str(ConfigError(f"got {HOSTILE}", fix="no\rthing")).isprintable()


def test_text_in_markdown():
    assert escaping.markdown(HOSTILE) == (
        r"\\x1b\[2J\\u202eevil\`\</td\>\<script\>\|\[x\](http\://a.b)!\[y\](z) # title \*\*b\*\* \_c\_ snake_case"
    )
    assert escaping.code("a``b") == "```a``b```"
    assert escaping.code("`a`") == "`` `a` ``"
    assert escaping.fenced("json", "a\n```\nb") == ["````json", "a", "```", "b", "````"]


def test_text_of_others_in_a_model_card():
    origin = {"command": [HOSTILE], "commit": HOSTILE, "versions": {HOSTILE: HOSTILE}, "seed": 0}
    card = model_card(
        {
            "title": HOSTILE,
            "input": "x",
            "output": HOSTILE,
            "data": {"name": HOSTILE, "input_shapes": [[1]], "class_names": [HOSTILE, "b"]},
            "results": {"data": HOSTILE, HOSTILE: 1.0},
            "origin": {**origin, "device": HOSTILE, "started": HOSTILE},
            "settings": {"retraining": {HOSTILE: [HOSTILE]}},
            "artefacts": {},
            "left_out": {"onnx": HOSTILE},
        },
        Genotype("x", {HOSTILE: HOSTILE}),
    )
    lines = card.split("\n")
    assert all(line.isprintable() for line in lines)
    assert sum(line.startswith("# ") for line in lines) == 1
    in_block = False
    for line in lines:
        in_block ^= line.startswith("```")
        if not in_block and "``" not in line:  # a code span may have anything but its own fence
            assert "<script" not in line.replace(r"\<", "")
            assert "](" not in line.replace(r"\](", "")


def test_the_card_warns_of_files_that_may_run_code():
    from nas.formats.program import WARNING

    artefact = {"about": "x", "needs": ["torch"], "code": "y", "largest_difference_to_network": 0.0}
    metadata = {
        **dict.fromkeys(("title", "input", "output"), "x"),
        **{key: {} for key in ("results", "settings", "left_out")},
        "origin": None,
        "data": {"name": "d", "input_shapes": [[1]], "class_names": []},
        "artefacts": {"model.pt2": {**artefact, "warning": WARNING}, "weights.safetensors": artefact},
    }
    assert model_card(metadata, Genotype("x", {})).count("load only a file from somebody you trust") == 1
