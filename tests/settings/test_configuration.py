"""build() and check_target(). test_shipped_configs.py tests that every YAML composes and builds."""

import pytest
import torch
from omegaconf import OmegaConf

from nas.errors import ConfigError
from nas.methods.deriver import TopPredecessors
from nas.settings.allowed_targets import check_target
from nas.settings.configuration import build, refuse_interpolations
from nas.training.schedule import Linear

FOREIGN = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "pathlib.Path",
    "torch.load",
    "torch.hub.load",
    "nasty.Thing",
    "nas_other.Thing",
    "torch.optimx.SGD",
    "",
    "nas",
    "os",
    5,
    None,
    ["nas.methods.sampler.GDAS"],
]

# They begin with an allowed name and lead elsewhere.
DETOURS = [
    "nas.storage.atomic.os.remove",
    "nas.storage.atomic.os.system",
    "nas.storage.checkpoint_file.pickle.loads",
    "nas.storage.checkpoint_file.torch.load",
    "nas.settings.configuration.Path",
    "nas.supernet.choice.functools.partial",
    "nas.runtime.runtime.sys.exit",
    "nas.methods.sampler.GDAS.__class__",
    "nas.methods.sampler.GDAS.__subclasses__",
    "nas.spaces.ops.Zero.__init__.__globals__",
    "nas.spaces.ops.Zero.__bases__",
    "torch.optim.Adam.step.__globals__",
    "torch.optim.sgd.torch.load",
    "nas.storage.atomic.os",
    "nas.x.os.system",
    "torch.nn.functional.importlib.import_module",
    "torch.nn.functional.torch.hub.load",
    "torch.nn.functional.boolean_dispatch",
    "torch.optim.lr_scheduler.types.FunctionType",
    "torch.optim.swa_utils.torch.load",
    # Ours, and no options: they act instead of building something, or may be made to.
    "nas.data.spec.DataSpec.from_dict",
    "nas.formats.program.write_program",
    "nas.settings.signature_check.parameters_of",
    "torch.nn.functional.handle_torch_function",
    "torch.optim.Optimizer",
    "nas.cli.run.main",
    "nas.settings.configuration.build",
    "nas.settings.schemas.register_schemas",
    "nas.settings.allowed_targets.check_target",
    "nas.storage.atomic.write_text",
    "nas.storage.checkpoint_file.save",
    "nas.formats.subprocess_check.run",
    "nas.formats.standalone.runpy.run_path",
    "nas.training.trained.Trained.load",
]


@pytest.mark.parametrize("target", FOREIGN + DETOURS, ids=str)
def test_what_is_not_ours_is_refused(target):
    with pytest.raises(ConfigError):
        check_target(target)


@pytest.mark.parametrize("target", FOREIGN[:7] + DETOURS, ids=str)
def test_build_refuses_before_anything_is_called(target, tmp_path):
    victim = tmp_path / "file"
    victim.write_text("still here")
    with pytest.raises(ConfigError, match="_target_"):
        build(OmegaConf.create({"_target_": target, "path": str(victim)}))
    assert victim.exists()


@pytest.mark.parametrize("as_config", [True, False])
@pytest.mark.parametrize("bad", ["os.system", "nas.storage.atomic.os.remove", "builtins.eval"])
def test_a_target_deep_inside_is_found(bad, as_config, tmp_path):
    victim = tmp_path / "file"
    victim.write_text("still here")
    inner = {"_target_": bad, "path": str(victim)}
    for hidden in ({"a": [1, [{"b": inner}]]}, [[inner]], {"_partial_": True, **inner}):
        node = {"_target_": "nas.methods.GDAS", "x": hidden}
        with pytest.raises(ConfigError, match=f"_target_ '{bad}'"):
            build(OmegaConf.create(node) if as_config else node)
    assert victim.exists()


def test_an_interpolated_target_is_seen_as_what_it_becomes():
    node = OmegaConf.create({"bad": "os.system", "x": {"_target_": "${bad}", "command": "true"}})
    with pytest.raises(ConfigError, match=r"_target_ 'os\.system'"):
        build(node.x)


def test_build_itself_is_no_way_around(tmp_path):
    victim = tmp_path / "file"
    victim.write_text("still here")
    node = {
        "_target_": "nas.settings.configuration.build",
        "_recursive_": False,
        "node": {"_target_": "os.remove", "path": str(victim)},
        "allow": ["os", "posix"],
    }
    with pytest.raises(ConfigError):
        build(OmegaConf.create(node))
    assert victim.exists()


def test_a_configuration_as_text_is_no_way_around(tmp_path):
    victim = tmp_path / "file"
    victim.write_text("still here")
    text = f"{{_target_: os.remove, path: {victim}}}"
    with pytest.raises(ConfigError, match="a str cannot be built"):
        build(text, allow=["os", "posix"])
    with pytest.raises(ConfigError):
        build({"_target_": "nas.settings.configuration.build", "node": text, "allow": ["os", "posix"]})
    assert victim.exists()


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a${now:%Y}", "${b}", "${oc.decode:'1'}"])
def test_what_is_read_is_not_resolved(value):
    with pytest.raises(ConfigError, match=r"there has a\.0\.c=.*, expected a value"):
        refuse_interpolations({"a": [{"c": value}], "b": 1}, "there")
    with pytest.raises(ConfigError, match=r"there has .*, expected a value"):
        refuse_interpolations({"a": [{value: "c"}], "b": 1}, "there")
    refuse_interpolations({"a": [{"c": "$5"}], "b": {}, "d": None}, "there")


@pytest.mark.parametrize("value", [r"\${oc.env:HOME}", r"\\\${oc.env:HOME}", r"a\${b}"])
def test_what_is_built_is_not_resolved_a_second_time(value):
    node = OmegaConf.create({"_target_": "collections.OrderedDict", "a": value, "b": [value]})
    built = build(node, allow=["collections"])
    assert "${" in built["a"]
    assert built["b"] == [built["a"]]


def test_a_misspelt_option_is_corrected():
    with pytest.raises(ConfigError, match=r"none of the options that ship.*did you mean nas\.methods\.GDAS\?"):
        check_target("nas.methods.sampler.Gdas")


def test_what_does_not_exist():
    for target in ("collections.Thing", "collections.nothing.Thing", "collections..Thing"):
        with pytest.raises(ConfigError, match=f"_target_ '{target}' does not exist"):
            check_target(target, ["collections"])


def test_one_object_is_allowed_by_its_path_or_as_it_is():
    from collections import OrderedDict, namedtuple

    assert check_target("collections.OrderedDict", ["collections.OrderedDict"]) is OrderedDict
    with pytest.raises(ConfigError, match="outside of the packages"):
        check_target("collections.Counter", ["collections.OrderedDict"])
    assert check_target("collections.namedtuple", [namedtuple]) is namedtuple
    with pytest.raises(ConfigError, match="outside of the packages"):
        check_target("collections.OrderedDict", [namedtuple])


def test_allow_opens_one_package():
    node = OmegaConf.create({"_target_": "collections.OrderedDict", "a": 1})
    with pytest.raises(ConfigError, match=r"allow_targets=\[package\]"):
        build(node)
    assert build(node, allow=["collections"]) == {"a": 1}
    with pytest.raises(ConfigError):
        build(node, allow=["collection", "os"])
    with pytest.raises(ConfigError):
        check_target("os.system", ["collections"])
    with pytest.raises(ConfigError):
        check_target("collections.abc.sys.exit", ["collections"])


def test_build_instantiates():
    assert build(OmegaConf.create({"_target_": "nas.training.Linear", "start": 1.0, "end": 0.5})) == Linear(1.0, 0.5)
    deriver = build(OmegaConf.create({"_target_": "nas.methods.TopPredecessors", "exclude": ["none", "x"]}))
    assert isinstance(deriver, TopPredecessors)
    assert deriver.exclude == ("none", "x")


def test_build_completes_a_partial():
    weight = torch.nn.Parameter(torch.ones(1))
    node = OmegaConf.create({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1})
    optimizer = build(node, params=[weight])
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.1


WRAP = pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(OmegaConf.create, id="config"),
        pytest.param(dict, id="dict"),
    ],
)


@WRAP
@pytest.mark.parametrize(
    "arguments", [{"start": 1.0}, {"start": 1.0, "end": 0.5, "ende": 1}, {}], ids=["missing", "unknown", "none"]
)
def test_a_wrong_argument(wrap, arguments):
    with pytest.raises(ConfigError, match=r"nas\.training\.Linear cannot be built") as error:
        build(wrap({"_target_": "nas.training.Linear", **arguments}))
    assert "\n" not in str(error.value)


@WRAP
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.1, "momentun": 0.9}, r"torch\.optim\.SGD"),
        ({"lr": -1.0}, r"torch\.optim\.SGD"),
        ({"lr": 0.1, "nesterov": True}, r"torch\.optim\.SGD"),
        ({"lr": "fast"}, "^lr must be a number, got 'fast'; set lr=0.5$"),
    ],
)
def test_a_wrong_argument_of_a_partial(wrap, arguments, message):
    node = wrap({"_target_": "torch.optim.SGD", "_partial_": True, **arguments})
    with pytest.raises(ConfigError, match=message) as error:
        build(node, params=[torch.nn.Parameter(torch.ones(1))])
    assert "\n" not in str(error.value)


def test_arguments_for_what_is_no_partial():
    with pytest.raises(ConfigError, match=r"nas\.training\.Linear refuses its arguments"):
        build(OmegaConf.create({"_target_": "nas.training.Linear", "start": 1.0, "end": 0.5}), params=[])


def test_an_error_of_ours_comes_through_unchanged():
    message = "deriver.count must be at least 1, got 0; set deriver.count=2"
    node = {"_target_": "nas.methods.TopPredecessors", "count": 0}
    with pytest.raises(ConfigError) as error:
        build(OmegaConf.create(node))
    assert str(error.value) == message
    with pytest.raises(ConfigError) as error:
        build(OmegaConf.create({"_target_": "nas.methods.GDAS", "x": [node]}))
    assert str(error.value) == message
    with pytest.raises(ConfigError) as error:
        build(OmegaConf.create({"_target_": "nas.methods.TopPredecessors", "_partial_": True}), count=0)
    assert str(error.value) == message
