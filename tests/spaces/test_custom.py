"""Search, retraining and export with a user's own models, data and tasks; and with mistakes in them."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import custom_models  # of this directory: it stands for a user's package
import pytest
import torch

from nas.runtime.runtime import Runtime
from nas.settings import configuration
from nas.supernet.choice import Choice
from nas.supernet.genotype import Genotype
from nas.training.trained import Trained

HERE = Path(__file__).parents[1] / "support"

IMAGES = ("data=synthetic", "data.train=32", "data.test=8", "data.classes=3")
SIGNALS = ("data=custom", "data.factory=custom_models.signals")
PAIRS = ("data=custom", "data.factory=custom_models.pairs", "task=regression")
TINY = (
    "search.epochs=2",
    "search.batch_size=8",
    "retrain.epochs=2",
    "retrain.batch_size=8",
    "runtime.device=cpu",
    "runtime.threads=1",
    "tracker=jsonl",
    "formats=[]",  # each takes seconds
)


def command(name, *arguments):
    """Run a command in this process. Returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"nas-{name}", *arguments])
        try:
            importlib.import_module(f"nas.cli.{name}").main()
        except SystemExit as stop:
            return stop.code
        return 0


def run(directory, factory, *arguments):
    settings = ("space=custom", f"space.factory=custom_models.{factory}", *TINY, f"hydra.run.dir={directory}")
    return command("run", *settings, *arguments)


def search(directory, factory, *arguments):
    settings = ("space=custom", f"space.factory=custom_models.{factory}", *TINY, f"hydra.run.dir={directory}")
    return command("search", *settings, "search.epochs=1", *arguments)


@dataclass(frozen=True)
class Case:
    """choices: all keys and their candidates. arguments: of nas-run. metric: of the task. formats: of the export."""

    factory: str
    arguments: tuple[str, ...]
    choices: dict[str, set[str]]
    metric: str = "accuracy"
    formats: str = "[]"


ACTIVATIONS = {"relu", "silu", "tanh"}
CASES = {
    "depths": Case(
        "Depths",
        (*IMAGES, "space.arguments.depth=3"),
        {
            "stem": {"1x1", "3x3"},
            **{f"blocks.{block}.layers.conv": {"3x3", "5x5"} for block in range(3)},
            "head": {"linear", "mlp.8", "mlp.16"},
        },
    ),
    "shared key": Case("shared_key", IMAGES, {"activation": ACTIVATIONS}),
    "nested": Case(
        "nested",
        IMAGES,
        {
            "kind": {"plain", "block", "pool"},
            "inner activation": {"relu", "gelu"},
            "1.candidates.1.2": {"1", "3"},
            "1.candidates.2": {"max", "avg"},
        },
        formats="[weights]",
    ),
    "two inputs": Case(
        "TwoInputs",
        PAIRS,
        {"join": {"add", "bilinear"}, "act": {"tanh", "relu", "none"}},
        metric="mean_absolute_error",
        formats="[weights]",
    ),
    "signals": Case(
        "Signals",
        (*SIGNALS, "data.arguments.length=24", "retrain.network.width=10"),
        {"body.0": {"kernel_3", "kernel_7"}, "body.3": {"kernel_3", "kernel_7"}, "pool": {"avg", "max"}},
        formats="[weights]",
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of each case's run; a case is run when it is first asked for."""
    done = {}

    def directory(name):
        if name not in done:
            path = tmp_path_factory.mktemp("run") / "out"
            case = CASES[name]
            assert run(path, case.factory, *case.arguments, f"formats={case.formats}") == 0
            done[name] = path
        return done[name]

    return directory


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def read(path):
    return json.loads(path.read_text())


def trained(directory):
    return Trained.load(directory / "retrain" / "checkpoint.pt", allow=["custom_models"], runtime=Runtime(device="cpu"))


def test_search_and_derivation_decide_every_choice(case, finished):
    genotype = Genotype.load(finished(case) / "genotype.json")
    assert genotype.space == "custom"
    assert genotype.choices.keys() == CASES[case].choices.keys()
    assert all(name in CASES[case].choices[key] for key, name in genotype.choices.items())


def test_the_retrained_network_is_plain_and_scored_by_the_task(case, finished):
    network = trained(finished(case)).network
    assert not any(isinstance(module, Choice) for module in network.modules())
    result, metric = read(finished(case) / "result.json"), CASES[case].metric
    assert result["metric"]["name"] == metric
    assert result["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert result["macs"] > 0
    metrics = [json.loads(line) for line in (finished(case) / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in metrics] == ["search"] * 2 + ["retrain"] * 2
    for line in metrics:
        levels = ("weights", "arch") if line["stage"] == "search" else ("weights",)
        assert all({f"{level}/loss", f"{level}/{metric}"} <= line.keys() for level in levels)
        assert (metric == "accuracy") == ("weights/accuracy" in line)


def test_the_chosen_candidates_are_in_the_network(finished):
    genotype, network = Genotype.load(finished("signals") / "genotype.json"), trained(finished("signals")).network
    assert f"kernel_{network.body[0].kernel_size[0]}" == genotype.choices["body.0"]
    assert isinstance(network.pool, torch.nn.AdaptiveAvgPool1d) == (genotype.choices["pool"] == "avg")
    assert network.head.in_features == 10  # retrain.network.width
    assert network.body[1].affine


def test_choices_of_a_shared_key_are_derived_alike(finished):
    network = trained(finished("shared key")).network
    chosen = Genotype.load(finished("shared key") / "genotype.json").choices["activation"]
    kinds = {"relu": torch.nn.ReLU, "silu": torch.nn.SiLU, "tanh": torch.nn.Tanh}
    assert [type(network[position]) for position in (1, 3, 5)] == [kinds[chosen]] * 3
    assert network[3] is network[5]


def test_evaluating_the_checkpoint_gives_the_same_result(case, finished, tmp_path, capsys):
    checkpoint = finished(case) / "retrain" / "checkpoint.pt"
    arguments = (f"checkpoint={checkpoint}", "runtime.device=cpu", f"hydra.run.dir={tmp_path / 'out'}")
    assert command("evaluate", *arguments, "latency.seconds=0", "allow_targets=[custom_models]") == 0
    scored, result = read(tmp_path / "out" / "result.json"), read(finished(case) / "result.json")
    gap = result.pop("discretisation_gap")
    assert gap.keys() == {"relaxed", "derived", "recalibrated", "retrained_test", "examples"}
    assert {name: scored[name] for name in result} == result
    assert [measured["batch"] for measured in scored["latency"]] == [1, 64]
    low, high = result[f"test_{CASES[case].metric}_interval"]
    assert low <= result[f"test_{CASES[case].metric}"] <= high
    assert ("test_confusion" in result) == (CASES[case].metric == "accuracy")
    assert ("test_r_squared" in result) == (CASES[case].metric == "mean_absolute_error")
    assert f"test {CASES[case].metric.replace('_', ' ')}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_a_checkpoint_is_not_trusted_to_name_a_package(name, finished, tmp_path, capsys):
    checkpoint = finished("signals") / "retrain" / "checkpoint.pt"
    arguments = (f"checkpoint={checkpoint}", "runtime.device=cpu", f"hydra.run.dir={tmp_path / 'out'}")
    assert command(name, *arguments) == 2
    # Naming the data's factory on the command line trusts that one, not what the checkpoint names.
    assert command(name, *arguments, "data=custom", "data.factory=other_package.signals") == 2
    for line in capsys.readouterr().err.splitlines():
        assert line == (
            "error: _target_ 'custom_models.Signals' is none of the options that ship, and outside of the packages "
            "that may be built (none); if you trust it, add its package: allow_targets=[package]"
        )
    assert not (tmp_path / "out").exists()


RUN_EXPORTED = """
import json, sys, torch
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("nas", "custom_models"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
outputs = {}
for name, (program, inputs) in torch.load(sys.argv[1]).items():
    module = torch.export.load(program).module()
    assert not any(type(child).__name__ == "Choice" for child in module.modules()), name
    outputs[name] = [module(*(tensor[:count] for tensor in inputs)) for count in (1, 3, len(inputs[0]))]
torch.save(outputs, sys.argv[2])
"""


@pytest.fixture(scope="module")
def examples():
    """case -> five made-up inputs of its network, for those that are exported."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.randn(5, 3, 8, 8, generator=generator),)
    return {
        "nested": images,
        "two inputs": (torch.randn(5, 3, generator=generator), torch.randint(5, (5, 4), generator=generator)),
        "signals": (torch.randn(5, 1, 24, generator=generator),),
    }


@pytest.mark.long
def test_exported_programs_run_in_a_process_without_nas(finished, examples, tmp_path):
    for name in examples:
        checkpoint = finished(name) / "retrain" / "checkpoint.pt"
        arguments = (f"checkpoint={checkpoint}", "runtime.device=cpu", f"hydra.run.dir={tmp_path / name}")
        assert command("export", *arguments, "allow_targets=[custom_models]", "formats=[program]") == 0
    torch.save(
        {name: (str(tmp_path / name / "model.pt2"), inputs) for name, inputs in examples.items()},
        tmp_path / "inputs",
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN_EXPORTED, tmp_path / "inputs", tmp_path / "outputs"],
        check=True,
        cwd=tmp_path,
    )
    outputs = torch.load(tmp_path / "outputs")
    assert outputs.keys() == examples.keys()
    for name, got in outputs.items():
        network = trained(finished(name)).network
        for count, output in zip((1, 3, 5), got, strict=True):
            with torch.no_grad():
                expected = network(*(tensor[:count] for tensor in examples[name]))
            assert torch.allclose(output, expected, atol=1e-5), name


def test_metadata_says_how_to_make_inputs_and_read_outputs(finished):
    metadata = {name: read(finished(name) / "export" / "metadata.json") for name in ("two inputs", "signals", "nested")}
    assert metadata["two inputs"]["input"] == "float32 (batch, 3), int64 (batch, 4)"
    assert metadata["two inputs"]["output"].startswith("float32 (batch, ...): the predicted values")
    assert metadata["two inputs"]["data"]["class_names"] == []
    assert metadata["signals"]["input"] == "float32 (batch, 1, 24)"
    assert metadata["signals"]["data"]["class_names"] == ["0", "1", "2"]
    assert metadata["nested"]["input"].startswith("float32 (batch, channels, height, width): pixels")


def test_the_same_seed_gives_the_same_search(finished, tmp_path):
    """With augmentation and examples that do not fit in memory, read by another process."""
    augmented = ("data.augment={_target_: custom_models.noisy_shift, _partial_: true}", "search.epochs=1")
    for name, extra in (("one", ()), ("two", ("data.memory_limit_mb=0", "data.workers=1"))):
        assert run(tmp_path / name, "Signals", *SIGNALS, *augmented, *extra) == 0
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for a, b in zip(one, two, strict=True):
        timings = {"seconds_per_step", "examples_per_second"}
        assert {key: a[key] for key in a.keys() - timings} == {key: b[key] for key in b.keys() - timings}
    plain = json.loads((finished("signals") / "metrics.jsonl").read_text().splitlines()[0])
    assert plain["weights/loss"] != one[0]["weights/loss"]


SAMPLERS = sorted(path.stem for path in (configuration.directory() / "sampler").glob("*.yaml"))


@pytest.mark.parametrize(
    ("name", "arguments"), [("nested", IMAGES), pytest.param("TwoInputs", PAIRS, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_searches_a_model_of_ones_own(sampler, name, arguments, tmp_path):
    assert search(tmp_path / "out", name, *arguments, f"sampler={sampler}") == 0
    (line,) = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    keys = Genotype.load(tmp_path / "out" / "genotype.json").choices
    assert all(line[f"entropy/{key}"] > 0 for key in keys)
    if sampler != "uniform":  # which is there to leave the architecture alone
        assert line["arch/grad_norm"] > 0


@pytest.mark.parametrize(("name", "arguments"), [("nested", IMAGES), ("TwoInputs", PAIRS)])
def test_second_order_search_of_a_model_of_ones_own(name, arguments, tmp_path):
    assert search(tmp_path / "out", name, *arguments, "sampler=softmax", "searcher=second_order") == 0


@pytest.mark.parametrize(("name", "arguments"), [("nested", IMAGES), ("shared_key", IMAGES), ("TwoInputs", PAIRS)])
@pytest.mark.parametrize(
    "deriver",
    [
        ("deriver=best_of", "deriver.samples=3", "deriver.batches=1"),
        ("deriver=perturbation", "deriver.batches=1", "deriver.tune_steps=1"),
    ],
    ids=["best_of", "perturbation"],
)
def test_derivers_that_look_at_data_decide_a_model_of_ones_own(deriver, name, arguments, tmp_path):
    assert search(tmp_path / "out", name, *arguments, *deriver) == 0
    chosen = Genotype.load(tmp_path / "out" / "genotype.json").choices
    logged = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    for key, candidate in chosen.items():
        assert f"probability/{key}/{candidate}" in logged  # one of that choice, none is dropped


def test_perturbation_drops_the_edges_of_a_model_of_ones_own(tmp_path):
    extra = ("deriver=perturbation_quick", "deriver.batches=1", "deriver.count=1", "deriver.exclude=[]")
    assert search(tmp_path / "out", "Grouped", *SIGNALS, *extra) == 0
    chosen = Genotype.load(tmp_path / "out" / "genotype.json").choices
    assert sorted(name is None for name in chosen.values()) == [False, True, True]


def test_a_model_is_searched_in_training_mode_in_whatever_mode_it_is_built(tmp_path):
    assert search(tmp_path / "out", "BuiltInEvalMode", *SIGNALS) == 0
    assert custom_models.BuiltInEvalMode.modes
    assert all(custom_models.BuiltInEvalMode.modes)


def test_a_choice_in_a_transformer_layer(tmp_path):
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert run(tmp_path / "out", "Encoder", *SIGNALS) == 0
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("sampler", ["gdas", "softmax"])
def test_a_model_with_complex_weights(sampler, tmp_path):
    assert search(tmp_path / "out", "Frequencies", *SIGNALS, f"sampler={sampler}") == 0


def test_a_derivation_that_drops_edges(tmp_path):
    assert run(tmp_path / "out", "Grouped", *SIGNALS, "deriver=top_predecessors", "deriver.count=1") == 0
    chosen = Genotype.load(tmp_path / "out" / "genotype.json").choices
    assert sorted(name is None for name in chosen.values()) == [False, True, True]
    network = trained(tmp_path / "out").network
    sizes = [branch.kernel_size[0] for branch in network.branches if isinstance(branch, torch.nn.Conv1d)]
    assert [str(size) for size in sizes] == [name for name in chosen.values() if name is not None]


def test_a_loss_and_a_metric_of_ones_own(tmp_path, capsys):
    arguments = (
        "data=custom",
        "data.factory=custom_models.vectors",
        "task=custom",
        "task.loss._target_=torch.nn.functional.huber_loss",
        "+task.loss.delta=0.5",
        "task.metric._target_=custom_models.within",
        "+task.metric.tolerance=0.6",
        "task.name=within_tolerance",
        "task.higher_is_better=true",
        "task.percent=true",
    )
    assert run(tmp_path / "out", "regressor", *arguments) == 0
    assert "test within tolerance" in capsys.readouterr().out
    result = read(tmp_path / "out" / "result.json")
    made = trained(tmp_path / "out")
    _, test = custom_models.vectors()
    inputs, targets = test.tensors
    with torch.no_grad():
        error = (made.network(inputs) - targets).abs()
    assert result["test_within_tolerance"] == pytest.approx((error < 0.6).all(1).float().mean().item())
    expected = torch.where(error < 0.5, error**2 / 2, 0.5 * (error - 0.25)).mean()
    assert result["test_loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.long  # starts commands of its own
def test_the_models_package_is_found_where_the_command_is_started(tmp_path):
    """An installed command, unlike python -m, does not look there: -P leaves the directory out of the path."""
    (tmp_path / "mine.py").write_text((HERE / "custom_models.py").read_text())
    (tmp_path / "random.py").write_text("raise SystemExit('a file here stands in for an installed module')")
    start = "from nas.cli.search import main; main()"
    settings = ("space=custom", "space.factory=mine.Signals", "data=custom", "data.factory=mine.signals", *TINY)
    subprocess.run(
        [sys.executable, "-P", "-c", start, *settings, "search.epochs=1", f"hydra.run.dir={tmp_path / 'out'}"],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
    )
    assert Genotype.load(tmp_path / "out" / "genotype.json").choices.keys() == CASES["signals"].choices.keys()


# -- bad input

MISTAKES = {
    "not importable": (
        "nothing_here",
        SIGNALS,
        "_target_ 'custom_models.nothing_here' does not exist, or cannot be imported (ModuleNotFoundError: No module "
        "named 'custom_models.nothing_here'; 'custom_models' is not a package); correct the name; your own package has "
        "to be installed, or in the directory the command is started in",
    ),
    "no function": (
        "HERE",
        ("space.factory=custom_models", *SIGNALS),
        "_target_ 'custom_models' is a module, expected a function or class; add the name of a function or class, as "
        "in package.module.function",
    ),
    "no module": (
        "no_module",
        SIGNALS,
        "space.factory custom_models.no_module returned a dict, expected an nn.Module; return the model itself",
    ),
    "wrong argument": (
        "Signals",
        (*SIGNALS, "space.arguments.wdith=3"),
        "space.factory custom_models.Signals(in_channels, num_classes, affine, width=8) was given the arguments "
        "num_classes, in_channels, affine, wdith: got an unexpected keyword argument 'wdith'; correct "
        "space.arguments; the factory also gets spec, num_classes, in_channels, affine if its signature names them",
    ),
    "wrong size": (
        "Signals",
        (*SIGNALS, "retrain.network.depth=3"),
        "space.factory custom_models.Signals(in_channels, num_classes, affine, width=8) was given the arguments "
        "num_classes, in_channels, affine, depth: got an unexpected keyword argument 'depth'; correct "
        "space.arguments; the factory also gets spec, num_classes, in_channels, affine if its signature names them",
    ),
    "no choice": (
        "no_choice",
        SIGNALS,
        "Linear contains no Choice, so there is nothing to search; replace at least one of its modules by "
        "nas.Choice({'name': module, ...})",
    ),
    "unlike keys": (
        "unlike_keys",
        SIGNALS,
        "choices that share the key 'act' must be alike, got candidates ('relu', 'tanh') in group None and "
        "('relu', 'silu') in group None; give them different keys, or the same candidates in the same order",
    ),
    "one candidate": (
        "one_candidate",
        (*SIGNALS, "space.arguments.inside=true"),
        "a Choice needs at least 2 candidates, got 1 (only); add candidates, or use the module itself where there is "
        "nothing to choose",
    ),
    "no candidate": (
        "one_candidate",
        (*SIGNALS, "space.arguments.inside=false"),
        "a Choice needs at least 2 candidates, got 0 (none); add candidates, or use the module itself where there is "
        "nothing to choose",
    ),
    "unlike shapes": (
        "unlike_shapes",
        IMAGES,
        "the candidates of the choice at '1.candidates.1.0' return outputs of different shapes: same (2, 4, 8, 8), "
        "valid (2, 4, 6, 6); make the shapes equal, by padding, striding or a 1x1 convolution",
    ),
    "no tensor": (
        "tuple_candidate",
        (*SIGNALS, "data.arguments.length=8"),
        "candidate 'rnn' of the choice at '0' returns a tuple, expected one tensor; wrap the candidate in a module "
        "that returns one tensor",
    ),
    "a lazy module": (
        "lazy_candidate",
        SIGNALS,
        "space.factory custom_models.lazy_candidate returned a lazy module, whose 0.candidates.0.1.weight has no shape "
        "yet; give it its sizes, e.g. nn.Linear(16, 10) instead of nn.LazyLinear(10)",
    ),
    "a weight that is read": (
        "Encoder",
        SIGNALS,
        "'weight' was read of a Choice between full, low rank, which is to be called; call it in the forward pass; "
        "torch's transformer layers do after torch.backends.mha.set_fastpath_enabled(False), beside the model",
    ),
    "too few scores": (
        "too_narrow",
        IMAGES,
        "the model gives outputs of shape (2, 2) for 2 examples, expected (2, 3): a score for each of 3 classes; let "
        "the factory ask for num_classes, and make its last layer that wide",
    ),
    "a column": (
        "column",
        PAIRS,
        "the model gives outputs of shape (2, 1), expected that of the targets, (2,); make the last layer as wide as a "
        "target, and squeeze it where a target is one number",
    ),
    "two outputs": (
        "two_outputs",
        PAIRS,
        "the model returns a tuple, expected one tensor; return the tensor that the loss is to be computed of",
    ),
    "no classes": (
        "Signals",
        PAIRS,
        "the data set 'pairs' has no classes: its targets are not integers; return a class label as one integer, name "
        "the classes in data.classes if an example has several labels, or choose a model that does not ask for "
        "num_classes",
    ),
    "values to classify": (
        "TwoInputs",
        (*PAIRS, "task=classification"),
        "task=classification needs class labels as targets, got torch.float32 of shape () from 'pairs'; return each "
        "label as an integer, name the classes in data.classes, or set task=regression",
    ),
    "labels to regress": (
        "Signals",
        (*SIGNALS, "task=regression"),
        "task=regression needs floats as targets, got torch.int64 from 'signals'; return the targets as floats, or set "
        "task=classification",
    ),
    "no loss": (
        "Signals",
        (*SIGNALS, "task=custom"),
        "task.loss._target_ is not set, and has no default; add task.loss._target_=...",
    ),
    "a metric of the batch": (
        "TwoInputs",
        (
            *PAIRS,
            "task=custom",
            "task.loss._target_=torch.nn.functional.l1_loss",
            "task.metric._target_=torch.nn.functional.l1_loss",
            "task.higher_is_better=false",
        ),
        "task.metric returned shape () for 2 examples, expected a tensor of shape (2,); let the loss return its mean "
        "over the batch, and the metric a value for each example",
    ),
    "mixup of signals": (
        "Signals",
        (*SIGNALS, "retrain.mixup=0.2"),
        "retrain.mixup is 0.2 and retrain.cutmix 0.0, but the examples of 'signals' are not images; set "
        "retrain.mixup=0 and retrain.cutmix=0",
    ),
    "policy for signals": (
        "Signals",
        (*SIGNALS, "policy@retrain.policy=rand_augment"),
        "retrain.policy is RandAugment, but the examples of 'signals' are not images; set policy@retrain.policy=null",
    ),
    "smoothing of values": (
        "TwoInputs",
        (*PAIRS, "retrain.label_smoothing=0.1"),
        "retrain.label_smoothing, mixup and cutmix make probabilities of classes out of the targets, but the targets "
        "are no class labels; set all three to 0",
    ),
    "cutout of signals": (
        "Signals",
        (*SIGNALS, "retrain.cutout=4"),
        "retrain.cutout is 4, but the examples of 'signals' are not images; set retrain.cutout=0",
    ),
    "several inputs": (
        "Signals",
        (*PAIRS, "data.classes=[a,b]"),
        "the data set 'pairs' has 2 inputs, expected one; choose a model that takes them, e.g. space=custom with a "
        "factory that asks for spec",
    ),
    "one data set": (
        "Signals",
        ("data=custom", "data.factory=custom_models.one_data_set"),
        "data.factory custom_models.one_data_set returned a Waves, expected a pair of map-style torch Datasets; return "
        "(train, test), two objects with __len__ and __getitem__",
    ),
    "three data sets": (
        "Signals",
        ("data=custom", "data.factory=custom_models.three_data_sets"),
        "data.factory custom_models.three_data_sets returned (Waves, Waves, Waves), expected a pair of map-style torch "
        "Datasets; return (train, test), two objects with __len__ and __getitem__",
    ),
    "a function by its name": (
        "Signals",
        (*SIGNALS, "data.augment=custom_models.noisy_shift"),
        "data.augment must be a function of (inputs, generator), got 'custom_models.noisy_shift'; set "
        "data.augment={_target_: my_module.my_function, _partial_: true}",
    ),
    "an empty data set": (
        "Signals",
        ("data=custom", "data.factory=custom_models.empty_data_set"),
        "the test set of custom_models.empty_data_set is empty; return at least one item in each",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line_before_anything_is_written(mistake, tmp_path, capsys):
    factory, arguments, message = MISTAKES[mistake]
    assert run(tmp_path / "out", factory, *arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()


def test_inputs_that_the_model_cannot_take(tmp_path, capsys):
    assert run(tmp_path / "out", "Signals", *IMAGES) == 2
    told = capsys.readouterr().err
    assert told.startswith(
        "error: the model cannot take inputs of float32 (2, 3, 8, 8): it fails in body.0.candidates.0 (Conv1d) "
        "(RuntimeError: Expected 2D "
    )
    assert told.endswith("change the model or the data, until model(inputs) runs; --debug shows where it stopped\n")
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


ITEMS = {
    "no pair": "item 1 of the training set of custom_models.items is a Tensor, expected a pair (inputs, target)",
    "list": "item 1 of the training set of custom_models.items is inputs of type list, expected a tensor, or a tuple "
    "of tensors",
    "text": "item 1 of the training set of custom_models.items is a target of type str, expected a number or a tensor",
    "shape": "item 1 of the training set of custom_models.items is (float32 (3,)) with target int64 (), expected "
    "(float32 (2,)) with target int64 () as in the first training item",
    "target": "item 1 of the training set of custom_models.items is (float32 (2,)) with target float32 (), expected "
    "(float32 (2,)) with target int64 () as in the first training item",
    "random": "item 0 of the training set of custom_models.items is different each time it is read, expected the "
    "same: put what is random into data.augment",
}


@pytest.mark.parametrize("kind", ITEMS)
@pytest.mark.parametrize("limit", [0, 1])
def test_an_item_that_is_wrong_is_named(kind, limit, tmp_path, capsys):
    data = ("data=custom", "data.factory=custom_models.items", f"data.arguments.kind={kind}", "data.workers=0")
    assert run(tmp_path / "out", "Signals", *data, f"data.memory_limit_mb={limit}") == 2
    assert capsys.readouterr().err == f"error: {ITEMS[kind]}; correct its __getitem__\n"


@pytest.mark.parametrize(("kind", "lowest", "highest"), [("label", -1, 0), ("large", 0, 7)])
def test_integers_that_are_no_class_labels(kind, lowest, highest, tmp_path, capsys):
    data = ("data=custom", "data.factory=custom_models.items", f"data.arguments.kind={kind}")
    assert run(tmp_path / "out", "Signals", *data) == 2
    assert capsys.readouterr().err == (
        f"error: the targets of custom_models.items are integers from {lowest} to {highest}, expected class labels "
        "from 0 to at most 1; count the classes from 0, name all in data.classes, or return floats if they are values\n"
    )


def test_a_genotype_with_missing_and_extra_keys_lists_them(tmp_path, capsys):
    chosen = {"body.0": "kernel_3", "head": "linear", "tail": None}
    (tmp_path / "genotype.json").write_text(Genotype("custom", chosen).to_json())
    settings = ("space=custom", "space.factory=custom_models.Signals", *SIGNALS, *TINY)
    arguments = (*settings, f"genotype={tmp_path / 'genotype.json'}", f"hydra.run.dir={tmp_path / 'out'}")
    assert command("retrain", *arguments) == 2
    assert capsys.readouterr().err == (
        "error: the genotype lacks body.3, pool and has unknown head, tail, expected exactly the 3 choices of the "
        "space; use the space and size that the genotype was derived in\n"
    )
    assert not (tmp_path / "out").exists()


PIXELS = ("data=custom", "data.factory=custom_models.pixels", "data.classes=[dark,bright]")


def test_pixels_without_a_label_are_in_no_score(tmp_path, capsys):
    assert run(tmp_path / "out", "pixelwise", *PIXELS) == 0
    result = read(tmp_path / "out" / "result.json")
    counts = [measured["examples"] for measured in result["test_per_class"].values()]
    assert sum(counts) == 8 * 12  # of 16 pixels
    right = sum(measured["accuracy"] * measured["examples"] for measured in result["test_per_class"].values())
    assert result["test_accuracy"] == pytest.approx(right / sum(counts))
    wrong = (*PIXELS, "data.arguments={label: 255}")
    problem = "error: item 0 of the {} set of 'pixels' has the label 255, expected labels from 0 to 1, and -100 for"
    assert run(tmp_path / "wrong", "pixelwise", *wrong) == 2
    assert capsys.readouterr().err.startswith(problem.format("training"))
    assert not (tmp_path / "wrong").exists()
    trusted = (f"checkpoint={tmp_path}/out/retrain/checkpoint.pt", "allow_targets=[custom_models]")
    assert command("evaluate", *trusted, *wrong, "runtime.device=cpu", f"hydra.run.dir={tmp_path / 'scored'}") == 2
    assert capsys.readouterr().err.startswith(problem.format("test"))


def test_a_genotype_can_be_retrained_alone(finished, tmp_path):
    settings = ("space=custom", "space.factory=custom_models.Signals", *TINY, *CASES["signals"].arguments)
    genotype = finished("signals") / "genotype.json"
    assert command("retrain", *settings, f"genotype={genotype}", f"hydra.run.dir={tmp_path / 'out'}") == 0
    expected = read(finished("signals") / "result.json")
    del expected["discretisation_gap"]  # of the search
    assert read(tmp_path / "out" / "result.json") == expected


def test_other_data_than_in_training_are_refused(finished, tmp_path, capsys):
    checkpoint = finished("signals") / "retrain" / "checkpoint.pt"
    arguments = (f"checkpoint={checkpoint}", "runtime.device=cpu", f"hydra.run.dir={tmp_path / 'out'}", *SIGNALS)
    assert command("evaluate", *arguments, "allow_targets=[custom_models]", "data.arguments.length=30") == 2
    assert capsys.readouterr().err == (
        "error: the data set signals has inputs ((1, 30),), expected ((1, 24),) as in training; choose the data set "
        "that the network was trained on, or one with the same classes\n"
    )


def test_a_network_that_cannot_be_traced_leaves_its_result_and_says_so(tmp_path, capsys):
    assert run(tmp_path / "out", "untraceable", *SIGNALS, "formats=[program]") == 2
    message = capsys.readouterr().err
    assert message.startswith(
        "error: the network cannot be exported as program (program: torch.export cannot trace the network with a batch "
        "of any size ("
    )
    assert message.endswith("the checkpoint is complete; choose others, e.g. formats=[weights]\n")
    assert (tmp_path / "out" / "result.json").is_file()
    assert not (tmp_path / "out" / "export" / "model.pt2").exists()
