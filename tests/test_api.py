"""Python without Hydra: what it takes, what it says of mistakes, and how a run goes on."""

import copy
import dataclasses
import functools
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import nas
from nas.api.arguments import from_start
from nas.errors import ConfigError, DataError, NasError, OutputError, SpaceError
from nas.methods import BestOf, CollapseMonitor
from nas.methods.regulariser import Regulariser
from nas.storage.run_directory import RunDirectory
from nas.training.hooks import Hook, plain_number
from nas.training.schedule import Linear

# As little as a search can be.
SHORT = {"epochs": 1, "batch_size": 8, "gap_batches": 0, "device": "cpu", "progress": False}
RETRAIN = {"epochs": 1, "batch_size": 8, "device": "cpu", "progress": False}
FILES = {"tracker": nas.storage.JsonLines}


def small(in_channels, num_classes, affine, width=4):
    return nn.Sequential(
        nas.Choice({"narrow": nn.Conv2d(in_channels, width, 1), "wide": nn.Conv2d(in_channels, width, 3, padding=1)}),
        nn.BatchNorm2d(width, affine=affine),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )


class Table(nn.Module):
    def __init__(self, spec, outputs=1):
        super().__init__()
        (features,) = spec.input_shape
        self.first = nas.Choice(
            {"few": nn.Linear(features, 4), "many": nn.Sequential(nn.Linear(features, 4), nn.Tanh())}
        )
        self.last = nn.Linear(4, outputs)

    def forward(self, x):
        return self.last(self.first(x)).squeeze(1)


def images(count=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pixels = torch.randint(256, (count, 1, 6, 6), generator=generator, dtype=torch.uint8)
    pixels[labels == 1] //= 4
    return pixels, labels


def folder(root, count=8):
    for name, value in (("dark", 40), ("light", 200)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (6, 6), value + number).save(root / name / f"{number}.png")
    return root


SEARCH = functools.partial(nas.search, small, images(), **SHORT)
TRAIN = functools.partial(nas.retrain, small, nas.Genotype("custom", {"0": "wide"}), images(), **RETRAIN)


@pytest.mark.parametrize("given", [images(), TensorDataset(*images())], ids=["tensors", "data set"])
def test_the_same_examples_give_the_same_search(given):
    found = nas.search(small, given, **SHORT)
    same = nas.search(small, images(), **SHORT)
    assert found.genotype == same.genotype
    assert found.metrics["weights/loss"] == same.metrics["weights/loss"]
    assert found.result["metric"]["name"] == "accuracy"


def test_numbers_of_numpy_and_torch_that_a_hook_logs_are_resumed(tmp_path):
    class Log(Hook):
        def after_epoch(self, state):
            state.metrics |= {"numpy": np.float64(0.5), "torch": torch.tensor(2.0)}

    settings = FILES | {"directory": tmp_path / "run", "saving": nas.storage.Checkpoints, "hooks": [Log()]}
    nas.search(small, images(), **SHORT | settings | {"epochs": 1})
    resumed = {"epochs": 2, "resume": True, "may_change": ["epochs"]}
    metrics = nas.search(small, images(), **SHORT | settings | resumed).metrics
    assert [(type(metrics[name]), metrics[name]) for name in ("numpy", "torch")] == [(float, 0.5), (float, 2.0)]
    with pytest.raises(ConfigError, match="the metric word is a str, expected a number"):
        plain_number("word", "x")


def test_a_folder_is_read_whole_and_its_copies_are_recognised(tmp_path, capsys):
    train, test = folder(tmp_path / "train"), folder(tmp_path / "test", count=3)
    seen = []

    class Count(Hook):
        def after_step(self, state):
            seen.append(state.steps)

    net = nas.retrain(small, nas.Genotype("custom", {"0": "wide"}), train, test=test, hooks=[Count()], **RETRAIN)
    assert seen == [2, 2]  # of sixteen images, none of which is held out
    assert net.spec.class_names == ("dark", "light")
    assert net.result["test_examples"] == 6
    assert "6 of the 6 images to score are copies" in capsys.readouterr().err
    assert net(torch.zeros(1, 1, 6, 6)).shape == (1, 2)


def test_a_model_with_choices_is_copied_and_left_as_it_is():
    model = small(1, 2, affine=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = nas.search(model, images(), **SHORT)
    net = nas.retrain(model, found.genotype, images(), **RETRAIN)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(isinstance(module, nas.Choice) for module in net.network.modules())
    with pytest.raises(ConfigError, match="a model that is built already takes no arguments, got width"):
        nas.retrain(model, found.genotype, images(), network={"width": 8}, **RETRAIN)


def test_numbers_are_for_regression_and_a_run_is_loaded_by_its_function(tmp_path):
    x = torch.randn(32, 3, dtype=torch.float64)
    train = (x, x.sum(dim=1))
    found = nas.search(Table, train, directory=tmp_path / "found", **SHORT, **FILES)
    net = nas.retrain(Table, found.genotype, train, directory=tmp_path / "net", **RETRAIN, **FILES)
    assert nas.evaluate(net, train)["metric"]["name"] == "mean_absolute_error"
    loaded = nas.load(tmp_path / "net", allow=[Table])
    assert torch.equal(loaded(x.float()), net(x.float()))
    assert nas.evaluate(tmp_path / "net", train, allow=[Table]) == nas.evaluate(net, train)
    with pytest.raises(NasError, match="outside of the packages that may be built"):
        nas.load(tmp_path / "net")
    assert (tmp_path / "found" / "genotype.json").read_text() == found.genotype.to_json()
    assert {path.name for path in (tmp_path / "found").iterdir()} == {
        "config.yaml", "manifest.json", "metrics.jsonl", "derived.jsonl", "genotype.json", "result.json", "search",
    }  # fmt: skip


def test_a_search_that_is_stopped_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    settings = SHORT | FILES | {"epochs": 3, "saving": nas.storage.Checkpoints}

    class Stop(Hook):
        def after_step(self, state):
            if state.epoch == 1:
                raise RuntimeError("stopped")

    whole = nas.search(small, images(), directory=tmp_path / "whole", **settings)
    with pytest.raises(RuntimeError, match="stopped"):
        nas.search(small, images(), directory=tmp_path / "part", hooks=[Stop()], **settings)
    recorded, record = [], RunDirectory.record
    monkeypatch.setattr(RunDirectory, "record", lambda self, **facts: recorded.append(facts) or record(self, **facts))
    rest = nas.search(small, images(), directory=tmp_path / "part", resume=True, **settings)
    assert recorded.count({}) == 2 + 2  # the time at both ends, and with each checkpoint: a kill would lose it
    states = [
        torch.load(tmp_path / name / "search" / "checkpoint.pt", weights_only=True)["arch"]
        for name in ("whole", "part")
    ]
    assert torch.equal(states[0]["logits"], states[1]["logits"])
    assert rest.genotype == whole.genotype
    with pytest.raises(OutputError, match=r'holds a run, .*; set directory to another, or .*: resume="'):
        nas.search(small, images(), directory=tmp_path / "part", **settings)
    with pytest.raises(ConfigError, match=r"another configuration: epochs=4 \(was 3\); .* may_change=\['epochs'\]$"):
        nas.search(small, images(), resume=tmp_path / "part", **settings | {"epochs": 4})
    longer = nas.search(small, images(), resume=tmp_path / "part", may_change=["epochs"], **settings | {"epochs": 4})
    assert longer.metrics["weights/loss"] != whole.metrics["weights/loss"]
    with pytest.raises(DataError, match="has other training examples"):
        nas.search(small, images(seed=1), resume=tmp_path / "part", **settings | {"epochs": 4})
    with pytest.raises(ConfigError, match=r"^epochs is 3 \(was 4\), but 4 epochs are done, expected at least 4; set"):
        nas.search(small, images(), resume=tmp_path / "part", may_change=["epochs"], **settings | {"epochs": 3})
    measuring = settings | {"epochs": 4, "gap_batches": 1}  # in epochs, of which all are done
    again = nas.search(small, images(), resume=tmp_path / "part", may_change=["gap_batches"], **measuring)
    assert "discretisation_gap" not in again.result


def test_an_optimiser_of_matrices_trains_a_network_of_matrices():
    def matrices(in_channels, num_classes):
        first, second = (nn.Linear(36, 4, bias=False) for _ in range(2))
        layers = {"linear": first, "rectified": nn.Sequential(second, nn.ReLU())}
        return nn.Sequential(nn.Flatten(), nas.Choice(layers), nn.Linear(4, num_classes, bias=False))

    make = functools.partial(torch.optim.Muon, lr=0.01)
    net = nas.retrain(matrices, nas.Genotype("custom", {"1": "linear"}), images(), optim=make, **RETRAIN)
    assert net.network[1].weight.shape == (4, 36)


def test_why_a_search_stopped_early_is_said():
    monitor = functools.partial(CollapseMonitor, skips=None, parameter_free=0.0, patience=1, stop=True)
    space = nas.spaces.NasBench201(ops=dict.fromkeys("ab", nas.spaces.skip_connect), channels=2, cells=1)
    found = nas.search(space, images(), monitor=monitor, **SHORT | {"epochs": 3})
    assert found.stopped.startswith("epoch 1: 6 of 6 derived operations have no parameters")
    assert found.result["search_stopped"] == found.stopped


class AtTheEnd:
    """Decides in another way after the last epoch."""

    batches = 1

    def judged(self, arch, judge):
        return dict.fromkeys(arch.keys, "narrow")

    def __call__(self, arch):
        return dict.fromkeys(arch.keys, "wide")


class Patience(Hook):
    """Ends a search in its second epoch."""

    epochs = 0

    def after_epoch(self, state):
        self.epochs += 1
        state.stopped = "patience" if self.epochs == 2 else None
        if self.epochs == 3:
            pytest.fail("the search is to have ended")

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


@pytest.mark.parametrize("deriver", [lambda arch: {}[0], functools.partial(BestOf, samples=2)])
def test_a_deriver_that_fails_is_told_before_the_search(deriver):
    with pytest.raises(ConfigError, match=r"the deriver fails \((KeyError: 0|TypeError: .*)\); correct its __call__"):
        nas.search(small, images(), deriver=deriver, **SHORT)


def test_one_thread_makes_a_run_at_a_time():
    refused = []

    class Other(Hook):
        def after_epoch(self, state):
            nas.retrain(small, state.genotype, images(), **RETRAIN)  # in the same thread

            def run():
                with pytest.raises(ConfigError, match="another thread of this process makes a run") as caught:
                    nas.search(small, images(), **SHORT)
                refused.append(caught)

            thread = threading.Thread(target=run)
            thread.start()
            thread.join()

    nas.search(small, images(), hooks=[Other()], **SHORT)
    assert refused


def test_a_hook_may_end_a_search_which_then_decides_as_after_its_last_epoch(tmp_path):
    settings = {"deriver": AtTheEnd(), "directory": tmp_path, "saving": nas.storage.Checkpoints}
    settings |= SHORT | FILES | {"gap_batches": 1}
    first = nas.search(small, images(), hooks=[Patience()], **settings)
    assert (first.stopped, dict(first.genotype.choices)) == (None, {"0": "narrow"})
    found = nas.search(
        small, images(), hooks=[Patience()], resume=True, may_change=["epochs"], **settings | {"epochs": 9}
    )
    assert (found.stopped, dict(found.genotype.choices)) == ("patience", {"0": "narrow"})
    assert found.metrics["genotype_changes"] == 0
    assert nas.Genotype.load(tmp_path / "genotype.json") == found.genotype


def test_the_process_is_as_it_was_before():
    torch.manual_seed(5)
    before, deterministic = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    nas.search(small, images(), **SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_loading_and_scoring_leave_the_random_numbers_of_a_program(tmp_path):
    TRAIN(directory=tmp_path, **FILES)
    before = torch.get_rng_state()
    nas.load(tmp_path, allow=[small])
    nas.evaluate(tmp_path, images(), allow=[small])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        functools.partial(torch.autocast, "cpu", torch.bfloat16),
        functools.partial(torch.device, "meta"),
    ],
)
def test_modes_of_the_program_have_no_effect_on_a_run(mode):
    def run(data):
        net = TRAIN(test=data)
        return SEARCH().metrics["arch/loss"], net.result["test_loss"], nas.evaluate(net, data)["test_loss"]

    data = images()
    expected = run(data)
    with mode():
        assert run(data) == expected


class Never(Hook):
    def after_step(self, state):
        pytest.fail("a mistake is to be found before the first step")


class Late(nn.Module):
    """Makes a parameter where it is first used."""

    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.inner, self.scale = small(in_channels, num_classes, affine=False), None

    def forward(self, x):
        if self.scale is None:
            self.scale = nn.Parameter(torch.ones(1))
        return self.inner(x) * self.scale


class Enclosed(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.inner, hidden = small(in_channels, num_classes, affine=False), nas.Choice({"a": nn.ReLU(), "b": nn.ELU()})
        self.run = lambda x: hidden(x)

    def forward(self, x):
        return self.inner(self.run(x))


class Arrays:
    def __init__(self, lost=None):
        self.lost = lost

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if self.lost is not None:
            raise KeyError(self.lost)
        return np.zeros((1, 6, 6), dtype=np.float32), 0


def test_what_was_found_of_the_data_is_said_once(tmp_path, capsys):
    pixels, labels = images()
    for data, warning in (
        ((pixels, 2 * labels), "warning: no train images for 1 of the 3 classes: 1\n"),
        ((pixels.view(-1, 6, 6, 1), labels), "have the shape (6, 6, 1), which is read as (channels, height, width)"),
    ):
        nas.search(small, data, **SHORT | {"progress": True})
        told = capsys.readouterr()
        assert told.err.count(warning) == 1
    assert "data: 2 classes, 32 images for training; 16 of each class\n" in told.out


SHARED = small(1, 2, affine=True)


class Forgetful(nn.Sequential):
    def __init__(self):
        super().__init__(*small(1, 2, affine=True))

    def train(self, mode=True):
        super().train(mode)


class SharedChoice(nn.Module):
    def __init__(self):
        super().__init__()
        self.choice, self.rest = SHARED[0], small(1, 2, affine=True)[1:]

    def forward(self, x):
        return self.rest(self.choice(x))


class SharedNorm(nn.Module):
    def __init__(self, learns):
        super().__init__()
        self.first, self.rest = SHARED[1].requires_grad_(learns), small(4, 2, affine=True)

    def forward(self, x):
        return self.rest(self.first(x.expand(-1, 4, -1, -1)))


def test_processes_of_torchrun_that_do_not_share_are_said(capsys, monkeypatch):
    assert "processes were started" not in (nas.search(small, images(), **SHORT) and capsys.readouterr().err)
    monkeypatch.setenv("WORLD_SIZE", "2")
    nas.search(small, images(), **SHORT)
    assert "warning: 2 processes were started (WORLD_SIZE), and each of them does all" in capsys.readouterr().err


@pytest.mark.parametrize("learns", [True, False])
def test_modules_that_models_of_a_factory_share_are_said_once(capsys, learns):
    nas.search(functools.partial(SharedNorm, learns=learns), images(), **SHORT)
    told = capsys.readouterr().err
    assert told.count("SharedNorm returns share first (BatchNorm2d): training one of them changes the others") == learns


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: SEARCH(epochs=0), ConfigError, "^epochs must be at least 1, got 0; set epochs=1$"),
        (lambda: SEARCH(batch_size=17), DataError, "^batch_size 17 is larger than the 16 examples .* batch_size to at"),
        (lambda: SEARCH(device="cuda:9"), NasError, "^device 'cuda:9' is not on this machine.*; set device=auto$"),
        (lambda: SEARCH(resume=True), ConfigError, "resume is True without a directory; give the run's directory"),
        (lambda: SEARCH(seed=2**63), ConfigError, r"seed must be below 2\^63"),
        (lambda: SEARCH(augment=abs), ConfigError, r"augment is a builtin_function_or_method, expected a nas\.data"),
        (lambda: SEARCH(weight_optim=nn.Linear), ConfigError, "Linear refuses its arguments"),
        (lambda: SEARCH(weight_optim="sgd"), ConfigError, "^weight_optim is a str, expected a class or a function"),
        (lambda: SEARCH(sampler=nas.GDAS), ConfigError, r"^sampler is the class GDAS.*; give sampler=GDAS\(\.\.\.\)$"),
        (lambda: SEARCH(temperature=5.0), ConfigError, "^temperature is a float, expected an object with __call__"),
        (lambda: SEARCH(task=nn.MSELoss()), ConfigError, "^task is a MSELoss, expected an object with loss, measure"),
        (
            lambda: SEARCH(hooks=[3]),
            ConfigError,
            "^hooks is a list, expected a list of objects of nas.training.hooks.H",
        ),
        (lambda: SEARCH(hooks=Never()), ConfigError, "^hooks is a Never, expected a list of objects"),
        (lambda: SEARCH(hooks=iter([Never()])), ConfigError, "^hooks is a list_iterator, expected a list of objects"),
        (lambda: SEARCH(may_change="epochs"), ConfigError, r"^may_change is a str.*; give may_change=\['epochs'\]$"),
        (lambda: SEARCH(batch_size=8.0), ConfigError, "^batch_size is a float, expected a whole number"),
        (lambda: SEARCH(directory=__file__), OutputError, "of the run cannot be made .File exists.; set directory to"),
        (lambda: TRAIN(lr=0.1), ConfigError, "^lr is a float, expected a function of the progress"),
        (lambda: TRAIN(lr=torch.optim.lr_scheduler.StepLR), ConfigError, "^lr is torch's StepLR, expected a function"),
        (lambda: SEARCH(temperature=lambda progress: None), ConfigError, "^temperature returns a NoneType, expected a"),
        (
            lambda: nas.search(lambda: SHARED, images(), **SHORT),
            NasError,
            "returned the model that it had returned bef",
        ),
        (
            lambda: nas.search(SharedChoice, images(), **SHORT),
            NasError,
            "the choice choice that it had returned before",
        ),
        (
            lambda: nas.search(Forgetful, images(), **SHORT),
            NasError,
            "the Forgetful that .*; end it with `return self`",
        ),
        (lambda: TRAIN(lr=Linear(0.1, -0.1)), ConfigError, "^lr must be finite and at least 0 throughout, got -0"),
        (lambda: TRAIN(test="nowhere", hooks=[Never()]), DataError, "^the folder nowhere does not exist"),
        (lambda: nas.search(nn.LazyLinear(3), images()), NasError, "^build_model LazyLinear returned a lazy module"),
        (lambda: nas.search(Late, images(), **SHORT), NasError, "the parameter scale in its forward pass"),
        (lambda: nas.search(Enclosed, images(), **SHORT), NasError, "a choice that is not among its registered child"),
        (lambda: nas.search(small, Arrays()), DataError, "^item 0 of train is inputs of type ndarray, expected a ten"),
        (lambda: nas.search(small, Arrays(lost=3)), DataError, r"^item 0 of train is not there \(KeyError: 3\)"),
        (lambda: TRAIN(accumulation=0), ConfigError, "^accumulation must be at least 1, got 0; set accumulation=1$"),
        (lambda: TRAIN(drop_path=0.2), ConfigError, "^drop_path is 0.2, but .*; set drop_path=0, or use"),
        (lambda: nas.search(3, images()), ConfigError, "build_model is a int, expected a space, a function"),
        (lambda: nas.search(nas.spaces.Darts, images()), ConfigError, r"is the class Darts.*give Darts\(\.\.\.\)$"),
        (
            lambda: SEARCH(regulariser=nas.methods.Entropy),
            ConfigError,
            "^regulariser is the class.*a dict of name -> obj",
        ),
        (
            lambda: SEARCH(regulariser={"mine": lambda arch, progress: arch.entropy().mean()}),
            ConfigError,
            r"^regulariser.mine is a class or a function, .*; give an object with __call__\(arch, progress\)",
        ),
        (lambda: SEARCH(image_size=32), ConfigError, "^image_size was given .*, but only the images of a folder are"),
        (lambda: nas.search(small, nas.data.Digits(), classes="ab"), ConfigError, "^classes was given beside a Digits"),
        (lambda: nas.search(small, 3), DataError, "train is a int, expected a map-style data set, a pair"),
        (
            lambda: nas.search(small, nas.data.Digits),
            DataError,
            r"^train is the class Digits, expected a data set; give Digits\(\.\.\.\)$",
        ),
        (lambda: nas.search(small, (torch.zeros(3, 1), torch.zeros(2))), DataError, "have 2, 3 examples"),
        (lambda: nas.search(small, "nowhere"), DataError, "^the folder nowhere does not exist; give the folder with"),
        (lambda: nas.evaluate(nn.Linear(1, 1), images()), ConfigError, "net is a Linear, expected what nas.retrain"),
        (lambda: nas.export("x", "y", formats=["z"]), NasError, "no checkpoint at x"),
        (lambda: nas.load(5), ConfigError, "^path is a int, expected a path; give it as a text or a pathlib.Path$"),
        (lambda: nas.load("x", allow="mine"), ConfigError, r"^allow is a str, expected a list; give allow=\['mine'\]$"),
        (lambda: nas.evaluate("x", images(), allow=None), ConfigError, "^allow is a NoneType, expected a list"),
        (lambda: nas.load(""), ConfigError, "^path is '', expected a path"),
        (lambda: nas.load("~nobody-has-it/x"), ConfigError, "^path is '~nobody-has-it/x', expected a path"),
        (lambda: nas.export("x", None), ConfigError, "^directory is a NoneType, expected a path"),
        (lambda: SEARCH(directory=b"x"), ConfigError, "^directory is a bytes, expected a path"),
        (lambda: SEARCH(resume=None), ConfigError, "^resume is a NoneType, expected a path"),
        (lambda: SEARCH(may_change=5), ConfigError, "^may_change is a int, expected a list"),
        (lambda: nas.search(small, nas.data.ImageFolder(root=None)), ConfigError, "^the folder is a NoneType, expec"),
        (lambda: nas.search(small, nas.data.Cifar10(root=None)), ConfigError, "^the folder is a NoneType, expected a"),
        (lambda: nas.spaces.NasBench201Table(table=None), ConfigError, "^benchmark.table is a NoneType, expected a p"),
        (lambda: nas.spaces.resolve(None), ConfigError, "^genotype is a NoneType, expected a path"),
        (lambda: nas.search(small(1, 2, False).to("meta"), images()), ConfigError, r"0\.weight of the model is on"),
    ],
)
def test_mistakes_name_the_arguments(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("formats", [[], {}, None, 5])
def test_an_export_without_a_format_is_refused(tmp_path, formats):
    net = TRAIN()
    with pytest.raises(ConfigError, match=r"^formats is .*, expected a list of names; set formats=\['weights'"):
        nas.export(net, tmp_path / "out", formats=formats)
    with pytest.raises(ConfigError, match=r"0\.\w+ of the model is on torch's meta device"):
        nas.export(dataclasses.replace(net, network=copy.deepcopy(net.network).to("meta")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Running(nn.Module):
    """A loss that divides by a running mean of its values."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, outputs, targets):
        loss = nn.functional.cross_entropy(outputs, targets)
        self.mean.mul_(0.5).add_(0.5 * loss.detach())
        return loss / self.mean


class Hardening(nn.Module):
    """Gates that become sharper with each draw, which is counted in a buffer that no state dict has."""

    relaxed, samples = True, 1

    def __init__(self):
        super().__init__()
        self.register_buffer("drawn", torch.zeros(()), persistent=False)

    def forward(self, logits, temperature, generator):
        self.drawn += 1
        return nas.Softmax()(logits * self.drawn, temperature, generator)


class Sharpening:
    """Gates that become sharper with each draw."""

    relaxed, samples, drawn = True, 1, 0

    def __init__(self):
        self.own = np.random.default_rng(1)

    def __call__(self, logits, temperature, generator):
        self.drawn += 1
        return nas.Softmax()(logits * (self.drawn + self.own.random()), temperature, generator)

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


class Growing(Regulariser):
    """A term that is larger with each call."""

    calls = 0

    def __call__(self, arch, progress):
        self.calls += 1
        return self.calls * arch.entropy().mean()

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Stronger:
    """A policy that is stronger with each batch."""

    def __init__(self):
        self.batches, self.own = 0, np.random.default_rng(1)

    def __call__(self, images, generator):
        self.batches += 1
        return images // self.batches + int(self.own.integers(3))

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


@pytest.mark.parametrize(
    ("run", "given"),
    [
        (SEARCH, lambda: {"augment": nas.data.Augment(policy=Stronger())}),
        (TRAIN, lambda: {"augment": nas.data.Augment(policy=Stronger())}),
        (TRAIN, lambda: {"policy": Stronger()}),
    ],
)
def test_the_state_of_an_augmentation_is_that_of_the_steps_and_is_resumed(tmp_path, run, given):
    def loss(found):
        return torch.load(tmp_path / found / "checkpoint.pt", weights_only=True)["metrics"]["weights/loss"]

    class Stop(Hook):
        def after_step(self, state):
            assert state.epoch == 0, "stopped"

    settings = FILES | {"saving": nas.storage.Checkpoints, "epochs": 2}
    stage, used = "search" if run is SEARCH else "retrain", given()
    run(directory=tmp_path / "whole", **given(), **settings)
    with pytest.raises(AssertionError, match="stopped"):
        run(directory=tmp_path / "part", hooks=[Stop()], **given(), **settings)
    run(resume=tmp_path / "part", **used, **settings)
    assert loss(f"part/{stage}") == loss(f"whole/{stage}")
    policy = used.get("policy") or used["augment"].policy
    assert policy.batches == 0


@pytest.mark.parametrize("made", [Sharpening, Hardening])
def test_the_state_of_a_loss_a_sampler_and_a_regulariser_is_that_of_the_steps_and_is_resumed(tmp_path, made):
    class Stop(Hook):
        def after_step(self, state):
            if state.epoch == 1:
                raise RuntimeError("stopped")

    class Mean(Hook):
        def __init__(self, loss):
            self.loss = loss

        def after_epoch(self, state):
            state.metrics["mean"] = float(self.loss.mean)

    term = Growing()

    def run(name, *hooks, **more):
        loss, sampler = Running(), made()
        task = nas.training.Custom(loss=loss, metric=hits, name="hits", higher_is_better=True)
        settings = SHORT | FILES | {"epochs": 2, "saving": nas.storage.Checkpoints, "gap_batches": 1}
        settings |= {"task": task, "sampler": sampler, "regulariser": {"term": term}, "directory": tmp_path / name}
        metrics = nas.search(small, images(), hooks=[Mean(loss), *hooks], **settings, **more).metrics
        return [metrics[key] for key in ("weights/loss", "arch/loss", "arch/grad_norm", "regulariser/term", "mean")]

    whole = run("whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run("part", Stop())
    assert run("part", resume=True) == whole


@pytest.mark.parametrize(("stage", "least"), [("search", 3), ("retrain", 2)])
def test_a_shorter_run_has_the_epochs_that_are_done_and_a_search_its_last(stage, least, tmp_path):
    """In which a deriver decides."""

    class Stop(Hook):
        def after_epoch(self, state):
            if state.epoch == 3:
                raise RuntimeError("stopped")

    def run(epochs, **more):
        given = {"epochs": epochs, "saving": nas.storage.Checkpoints, "directory": tmp_path, "may_change": ["epochs"]}
        if stage == "search":
            return nas.search(small, images(), **SHORT | FILES | given | {"deriver": BestOf()} | more)
        return nas.retrain(small, nas.Genotype("custom", {"0": "wide"}), images(), **RETRAIN | FILES | given | more)

    with pytest.raises(RuntimeError, match="stopped"):
        run(4, hooks=[Stop()])
    with pytest.raises(ConfigError, match=rf"^epochs is {least - 1} \(was 4\), but 2 .*; set epochs={least}$"):
        run(least - 1, resume=True)
    run(least, resume=True)


class Generated(nas.GDAS):
    """Draws by a generator of its own."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "own", torch.Generator().manual_seed(3))

    def __call__(self, logits, temperature, generator):
        return super().__call__(logits, temperature, self.own)


def test_runs_with_the_same_objects_are_those_with_new_ones():
    def run(loss, sampler):
        task = custom_task(loss)
        found = SEARCH(task=task, sampler=sampler).metrics["weights/loss"]
        return found, TRAIN(task=task, test=images(seed=1)).result["test_loss"]

    loss, sampler = Running(), Generated()
    expected = run(loss, sampler)
    assert run(loss, sampler) == run(Running(), Generated()) == expected
    assert loss.mean == 1


def test_a_network_is_scored_by_the_loss_as_it_was_trained_also_from_a_file(tmp_path):
    data = images(seed=1)
    net = TRAIN(task=custom_task(Running), test=data, directory=tmp_path / "run", **FILES)
    expected = net.result["test_loss"]
    assert [nas.evaluate(net, data)["test_loss"] for _ in range(2)] == [expected] * 2
    assert nas.evaluate(tmp_path / "run", data, allow=[small, Running, hits])["test_loss"] == expected


class Measuring(Hook):
    value = np.float64(0.5)

    def after_epoch(self, state):
        state.metrics["mine"] = self.value


def test_metrics_of_a_hook_are_numbers_of_python(tmp_path):
    """A number of NumPy would make the checkpoint unreadable."""
    settings = SHORT | FILES | {"directory": tmp_path, "saving": nas.storage.Checkpoints, "hooks": [Measuring()]}
    nas.search(small, images(), **settings)
    found = nas.search(small, images(), resume=True, may_change=["epochs"], **settings | {"epochs": 2})
    assert type(found.metrics["mine"]) is float
    Measuring.value = "high"
    with pytest.raises(ConfigError, match=r"^the metric mine is a str, expected a number"):
        SEARCH(hooks=[Measuring()])


def by_numpy(arch):
    """A deriver whose names are texts of NumPy."""
    return {key: np.array(list(probs))[np.argmax(list(probs.values()))] for key, probs in arch.named_probs().items()}


def test_settings_may_be_numbers_of_numpy(tmp_path):
    optim = functools.partial(torch.optim.SGD, lr=np.float64(0.1), momentum=np.float32(0.5))
    settings = SHORT | FILES | {"directory": tmp_path, "saving": nas.storage.Checkpoints, "weight_optim": optim}
    settings |= {"lr": lambda progress: np.float32(0.1)}
    settings |= {"arch_optim": functools.partial(torch.optim.Adam, betas=(np.float64(0.5), 0.75))}
    for own in ({"cap": {"macs": np.float64(0.99)}}, {"deriver": by_numpy}):
        settings["directory"] = tmp_path / str(*own)
        nas.search(small, images(), **settings | own)
        found = nas.search(small, images(), resume=True, may_change=["epochs"], **settings | own | {"epochs": 2})
        assert {type(name) for pair in found.genotype.choices.items() for name in pair} == {str}


def test_states_that_no_checkpoint_can_hold_are_found_before_the_first_step(tmp_path):
    sampler = Sharpening()
    sampler.drawn = np.int64(0)
    with pytest.raises(ConfigError, match=r"^a checkpoint is to hold sampler\.drawn, a int64, expected tensors"):
        SEARCH(sampler=sampler, hooks=[Never()], directory=tmp_path, **FILES)


class Looking(Hook):
    """Evaluates, and does not put back what it sets for this."""

    def after_epoch(self, state):
        torch.set_grad_enabled(False)
        for model in (getattr(state, name, None) for name in ("network", "supernet")):
            if model is not None:
                model.eval()


def test_modes_that_a_hook_leaves_do_not_count():
    def run(*hooks):
        found, net = SEARCH(epochs=2, hooks=hooks), TRAIN(epochs=2, hooks=hooks)
        return found.metrics["weights/loss"], found.metrics["arch/loss"], net(images()[0] / 255.0).tolist()

    assert run(Looking()) == run()


class Counting(nn.Module):
    """Counts its passes, in any mode."""

    def __init__(self, in_channels, num_classes, affine):
        super().__init__()
        self.inner, self.calls = small(in_channels, num_classes, affine), 0
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        self.passes += 1
        return self.inner(x)


@pytest.mark.parametrize(("call", "passes"), [(SEARCH, 2), (TRAIN, 1)])
def test_checks_of_a_model_leave_no_trace_in_it(call, passes):
    counts = []

    class Steps(Hook):
        def after_step(self, state):
            model = getattr(state, "supernet", None) or state.network
            counts.append((int(model.passes), model.calls))

    genotype = [nas.Genotype("custom", {"inner.0": "wide"})] if call is TRAIN else []
    call.func(Counting, *genotype, images(), **call.keywords, hooks=[Steps()])
    assert counts[0] == (passes, passes)


def test_a_model_with_weights_in_16_bits_is_searched_and_trained_without_an_average():
    class Half(Counting):
        def __init__(self, in_channels, num_classes, affine):
            super().__init__(in_channels, num_classes, affine)
            self.inner.bfloat16()

        def forward(self, x):
            return self.inner(x.bfloat16())

    found = nas.search(Half, images(), **SHORT)
    assert nas.retrain(Half, found.genotype, images(), **RETRAIN)(torch.zeros(1, 1, 6, 6)).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"^average takes weights in float32 or wider, got .* in bfloat16"):
        nas.retrain(Half, found.genotype, images(), average=0.9, **RETRAIN)


def test_a_probe_leaves_no_trace_in_a_loss():
    """With smoothed labels it is asked whether the loss takes them."""
    loss, before = Running(), []

    class Steps(Hook):
        def after_step(self, state):
            # mean = 0.5 * before + 0.5 * loss, of which loss / mean is returned
            before.append((2 - float(state.meter._loss) / state.meter.examples) * loss.mean.item())

    measure = nas.training.Classification().measure
    task = nas.training.Custom(loss=loss, metric=measure, name="hits", higher_is_better=True)
    TRAIN(task=task, label_smoothing=0.1, hooks=[Steps()])
    assert before[0] == pytest.approx(1)


def test_a_hook_may_change_a_regulariser_that_has_a_state():
    class Louder(Hook):
        def after_step(self, state):
            term.calls += 1000

    term = Growing()
    assert SEARCH(regulariser={"term": term}, hooks=[Louder()]).metrics["regulariser/term"] > 1000
    assert term.calls == 0


def hits(outputs, targets):
    return outputs.argmax(1) == targets


class Breaking(nn.Module):
    """Of which the steps on trial are not finite, and some others."""

    def __init__(self, in_channels, num_classes, affine):
        super().__init__()
        self.inner = small(in_channels, num_classes, affine)

    def forward(self, x):
        return self.inner(x) * (torch.nan if self.training and x[0, 0, 0, 0] < 0.5 else 1)


def test_steps_on_trial_may_be_such_as_are_skipped():
    device = nas.runtime.Runtime(device="cpu", on_nonfinite="skip", max_skipped=99)
    found = nas.search(Breaking, images(), **SHORT | {"device": device})
    assert found.metrics["skipped_steps"] > 0
    net = nas.retrain(Breaking, found.genotype, images(), **RETRAIN | {"device": device})
    with pytest.raises(NasError, match=r"on trial: weights: the loss is nan, .*, or skip such steps by"):
        nas.retrain(Breaking, found.genotype, images(), **RETRAIN)
    assert all(parameter.isfinite().all() for parameter in net.network.parameters())


class Doubled(nn.Module):
    def __init__(self, in_channels, num_classes, affine, in_place):
        super().__init__()
        self.in_place, self.inner = in_place, small(in_channels, num_classes, affine)

    def forward(self, x):
        return self.inner(x.mul_(2) if self.in_place else x * 2)


def test_a_model_that_writes_into_its_inputs_is_searched_as_one_that_does_not():
    """All draws of an architecture step run on one batch."""

    def loss(in_place):
        make = functools.partial(Doubled, in_place=in_place)
        return nas.search(make, images(), sampler=nas.GumbelSoftmax(samples=3), **SHORT).metrics["arch/loss"]

    assert loss(True) == loss(False)


def test_a_teacher_does_not_see_inputs_that_the_network_has_written_into():
    make = functools.partial(Doubled, in_place=True)
    settings = {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(36, 2))}
    nas.search(make, images(), **settings, **SHORT)  # on copies of its own
    with pytest.raises(NasError, match="the network writes into its inputs, which the teacher is to see as well"):
        nas.retrain(make, nas.Genotype("custom", {"inner.0": "wide"}), images(), **settings, **RETRAIN)


@pytest.mark.parametrize(
    ("lr", "first"),
    [
        (lambda done: 0.25 - done, 0.25),
        (lambda start: lambda done: 2 * start, 0.05),
        (lambda start, end=0.0: Linear(start, end), 0.025),
        (Linear(0.5, 0.0), 0.5),
        (functools.partial(Linear, end=0.0), 0.025),
    ],
)
def test_a_learning_rate_is_a_schedule_or_makes_one_from_the_rate_of_the_optimiser(lr, first):
    assert from_start(lr)(start=0.025)(0.0) == first


def custom_task(loss):
    return nas.training.Custom(loss=loss, metric=hits, name="hits", higher_is_better=True)


@pytest.mark.parametrize("task", [None, custom_task(nn.CrossEntropyLoss())])
def test_labels_that_are_no_integers_are_refused_before_scoring(task):
    pixels, labels = images()
    net = TRAIN(task=task)
    refused = pytest.raises(NasError, match=r"needs class labels|task\.(loss|metric)|has targets|with class labels")
    for test in (pixels, labels.float()), (pixels, torch.eye(2)[labels]):
        with refused:
            nas.evaluate(net, test)
        with refused:
            TRAIN(task=task, test=test, hooks=[Never()])


def test_images_are_not_scored_where_values_were_trained_on_nor_the_other_way_round():
    pixels, labels = images()
    values = r"inputs of float32 \(batch, 1, 6, 6\)"
    with pytest.raises(
        DataError, match=rf"^the data set test has {values}, expected images \(uint8 with class labels\)"
    ):
        nas.evaluate(TRAIN(), (pixels.float(), labels))
    net = nas.retrain(small, nas.Genotype("custom", {"0": "wide"}), (pixels.float(), labels), **RETRAIN)
    with pytest.raises(
        DataError, match=rf"^the data set test has images \(uint8 with class labels\), expected {values}"
    ):
        nas.evaluate(net, (pixels, labels))


def test_examples_of_the_training_that_are_scored_are_said(capsys):
    net = TRAIN(test=images(seed=1))
    nas.evaluate(net, images(seed=1))
    said = "warning: the examples to score are those that the network was trained on"
    assert said not in capsys.readouterr().err
    nas.evaluate(net, images())
    assert said in capsys.readouterr().err
    TRAIN(test=images())
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0], dtype=torch.float64)),
        nn.CrossEntropyLoss(torch.tensor([1, 2])),
        functools.partial(nn.functional.cross_entropy, weight=torch.tensor([1.0, 2.0], dtype=torch.float64)),
    ],
)
def test_class_weights_may_be_of_another_type(loss):
    expected = SEARCH(task=custom_task(nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])))).metrics["weights/loss"]
    assert SEARCH(task=custom_task(loss)).metrics["weights/loss"] == expected


class Detached(Sharpening):
    def __call__(self, logits, temperature, generator):
        return super().__call__(logits.detach(), temperature, generator)


@pytest.mark.parametrize(("sampler", "said"), [(Detached(), True), (Sharpening(), False), (nas.Uniform(), False)])
def test_gates_without_a_gradient_are_said(capsys, sampler, said):
    SEARCH(sampler=sampler)
    assert ("have no gradient, so the logits stay as they begin" in capsys.readouterr().err) is said


class Learned(nn.Module):
    """Gates with a temperature that could be learned."""

    samples, relaxed = 1, True

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits, temperature, generator):
        return nas.Softmax()(logits / self.scale, temperature, generator)


class Scaled:
    """A term of the user's own without metrics. It may hold the logits."""

    def __init__(self, arch, **known):
        self.arch, self.scale = arch, nn.Parameter(torch.ones(()))

    def __call__(self, arch, progress):
        return self.scale * arch.entropy().mean()


def test_parameters_of_a_sampler_or_a_regulariser_that_do_not_learn_are_said(capsys):
    SEARCH(sampler=Learned(), regulariser={"term": Scaled})
    said = [line for line in capsys.readouterr().err.splitlines() if "they will not learn" in line]
    assert [line.split(", but")[0] for line in said] == [
        "warning: the sampler holds 1 parameters that require a gradient, such as scale",
        "warning: the regulariser.term holds 1 parameters that require a gradient, such as scale",
    ]


def test_a_regulariser_that_exponentiated_gradients_normalise_away_is_said(capsys):
    settings = {"sampler": nas.Softmax(), "arch_optim": nas.methods.ExponentiatedGradient, "init_std": 1.0}
    decay = {"decay": nas.methods.BetaDecay(weight=Linear(50.0, 50.0))}
    expected = SEARCH(**settings).metrics["entropy/mean"]
    assert SEARCH(**settings, regulariser=decay).metrics["entropy/mean"] == pytest.approx(expected, rel=1e-5)
    assert "warning: regulariser.decay has no effect with exponentiated gradients" in capsys.readouterr().err
    entropy = {"entropy": nas.methods.Entropy(weight=Linear(1.0, 1.0))}
    assert SEARCH(**settings, regulariser=entropy).metrics["entropy/mean"] != pytest.approx(expected, rel=1e-5)
    assert "no effect" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda arch, progress: 0.5, "regulariser.term returned 0.5, expected a tensor with one number"),
        (lambda arch, progress: arch.entropy(), r"regulariser.term returned a tensor of shape \(1,\)"),
        (lambda arch, progress: arch.entropy().detach().sum(), "regulariser term does not depend on the logits"),
    ],
)
def test_a_regulariser_returns_one_number_that_depends_on_the_logits(term, message):
    with pytest.raises(ConfigError, match=message):
        SEARCH(regulariser={"term": lambda **known: term})


@pytest.mark.parametrize(
    ("what", "made", "got"),
    [
        ("measure", torch.ones(()), r"shape \(\)"),  # a mean over the batch would be divided by the examples once more
        ("measure", 0.5, "float"),
        ("weights", torch.ones(2, 2), r"shape \(2, 2\)"),
        ("weights", 1.0, "float"),
        ("loss", torch.ones(2), r"shape \(2,\)"),
        ("loss", (torch.ones(()), {}), "tuple"),
    ],
)
def test_a_task_of_ones_own_returns_numbers_of_the_right_shape(what, made, got):
    own = type("Own", (nas.training.Classification,), {what: lambda self, *given: made})
    with pytest.raises(ConfigError, match=rf"task.{what} returned {got} for 2 examples, expected a tensor of shape"):
        SEARCH(task=own())


def test_a_task_of_ones_own_that_fails_or_lacks_a_part_is_told():
    def fails(self, outputs, targets):
        raise KeyError("weights")

    for attribute, made, message in (
        ("measure", fails, r"^task.measure fails on outputs and targets of float32 \(2, 2\) and int64 .*KeyError"),
        ("metric", "accuracy", r"^task.metric is 'accuracy', expected a nas.training.task.Metric; set metric = Metric"),
    ):
        with pytest.raises(ConfigError, match=message):
            SEARCH(task=type("Own", (nas.training.Classification,), {attribute: made})())
    with pytest.raises(SpaceError, match=r"^a step of the search fails \(KeyError: 'weights'\)"):
        SEARCH(task=type("Own", (nas.training.Classification,), {"loss": fails})())
    parts = {name: getattr(nas.training.Classification, name) for name in ("loss", "measure", "metric")}
    with pytest.raises(ConfigError, match="expected an object with loss, measure, metric, check"):
        SEARCH(task=type("Own", (), parts)())


@pytest.mark.parametrize(("targets", "told"), [(torch.eye(2), True), (torch.ones(2, 2), False)])
def test_one_hot_labels_that_are_learnt_as_values_are_warned_of(targets, told, capsys):
    examples = images()[0].float(), targets.repeat(16, 1)
    nas.retrain(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), None, examples, **RETRAIN)
    assert ("look like one-hot labels" in capsys.readouterr().err) == told


def test_a_network_without_parameters_is_refused():
    with pytest.raises(SpaceError, match="derived network has no parameters, so nothing can learn; hold its weights"):
        nas.retrain(nn.Flatten(), None, (torch.randn(16, 3), torch.arange(16) % 3), **RETRAIN)


def test_integers_are_no_values_to_score_a_regression_on():
    inputs = torch.randn(16, 3)
    net = nas.retrain(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), None, (inputs, torch.randn(16)), **RETRAIN)
    with pytest.raises(DataError, match=r"has classes \('0', '1'\), expected \(\) .*; give the targets as floats"):
        nas.evaluate(net, (inputs, torch.arange(16) % 2))


def test_hooks_on_gradients_are_not_recorded(capsys, monkeypatch):
    runtime, model = nas.runtime.Runtime(device="cpu"), small(1, 2, affine=False)
    monkeypatch.setattr(runtime, "cuda_graphs", True)  # as on a GPU
    next(model.parameters()).register_hook(lambda gradient: 0.5 * gradient)
    nas.search(model, images(), **SHORT | {"device": runtime})
    assert "cuda_graphs cannot record hooks on the gradients of weights" in capsys.readouterr().err


@pytest.mark.parametrize("called", [True, False])
def test_a_torchscript_module_is_refused(called):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, which no longer develops it
        scripted = nn.Sequential(nn.Flatten(), torch.jit.script(nn.Linear(3, 2)))
    with pytest.raises(SpaceError, match="returned a TorchScript module at 1, expected plain modules; give the module"):
        nas.retrain((lambda: scripted) if called else scripted, None, images(), **RETRAIN)


def test_a_sampler_that_is_used_again_begins_anew():
    sampler = Sharpening()
    first, second = (SEARCH(sampler=sampler).metrics["arch/loss"] for _ in range(2))
    assert first == second
    assert sampler.drawn == 0


def test_numbers_of_numpy_are_as_those_of_python():
    settings = {
        "epochs": np.int64(1),
        "batch_size": np.int32(8),
        "seed": np.int64(3),
        "weight_fraction": np.float32(0.5),
    }
    found = nas.search(small, images(), **SHORT | settings)
    assert found.metrics["weights/loss"] == SEARCH(seed=3).metrics["weights/loss"]
    net = nas.retrain(small, found.genotype, images(), **RETRAIN | {"batch_size": np.int64(8)})
    assert nas.evaluate(net, images(), batch_size=np.int64(5)) == nas.evaluate(net, images(), batch_size=5)


def test_classes_may_be_named_by_numbers(tmp_path):
    net = TRAIN(classes=[3, 7], directory=tmp_path / "run", **FILES)
    assert net.spec.class_names == ("3", "7")
    assert nas.load(tmp_path / "run", allow=[small])(torch.zeros(1, 1, 6, 6)).shape == (1, 2)


@pytest.mark.parametrize(
    ("classes", "got"), [("ab", "the text 'ab'"), ({0: "a", 1: "b"}, "a dict"), ({"a", "b"}, "a set")]
)
def test_classes_are_named_in_the_order_of_their_labels(classes, got):
    with pytest.raises(DataError, match=f"classes of train are {got}, expected a list of names"):
        TRAIN(classes=classes)
