"""A cap on the measured time of the exported file: prediction, correction, what is kept, and resumption."""

import functools
import json

import pytest
import torch
from torch import nn

import nas
from nas.adapt.file_times import saved_times
from nas.data import given
from nas.errors import ConfigError
from nas.methods.cost import Cost
from nas.methods.timed_limit import Clock as PartClock, TimedLimit, derive_within, largest_of
from nas.methods.within_cap import WithinCap
from nas.training.evaluate import count_parameters
from nas.training.hooks import Hook

RUN = {"epochs": 2, "batch_size": 8, "gap_batches": 0, "device": "cpu", "progress": False}
SINGLE = {"tiny": 1.0, "small": 2.0, "middle": 4.0, "large": 8.0}  # what the table says


class Clock:
    """Times networks by a function, in rounds that differ a little."""

    def __init__(self, time):
        self.time = time
        self.timed, self.parts = [], []
        self.known = None

    def in_turns(self, networks, inputs):
        self.timed.append(networks[0])
        return [[self.time(network) * spread for network in networks] for spread in (0.99, 1.0, 1.01)]


def arch(*logits):
    made = nas.ArchParams.from_model(nn.Sequential(nas.Choice({name: nn.Identity() for name in SINGLE}, key="a")))
    with torch.no_grad():
        made.logits.copy_(torch.tensor([logits]))
    return made


def limit_of(cap, measured, *, part=None):
    limit = TimedLimit(
        "latency_ms",
        Cost({}),
        cap,
        "milliseconds",
        part=part,
        table=Cost({frozenset([("a", name)]): value for name, value in SINGLE.items()}),
        largest="large",
        inputs=torch.zeros(1),
        times=Clock(measured.__getitem__),
    )
    limit.correct(1.0)
    return limit


def derived(limit, logits=(0.0, 1.0, 2.0, 3.0)):
    made = arch(*logits)
    chosen = derive_within(limit, lambda: WithinCap([limit])(made), arch=made, network=lambda chosen: chosen["a"])
    return chosen["a"], limit.times.timed


@pytest.mark.parametrize(
    ("measured", "expected", "timed"),
    [
        (SINGLE, "middle", ["middle"]),  # as predicted
        ({"large": 9, "middle": 6, "small": 3, "tiny": 2}, "small", ["middle", "small"]),  # slower than predicted
        ({"large": 4, "middle": 2, "small": 1, "tiny": 0.5}, "large", ["middle", "large"]),  # faster
        ({"large": 8, "middle": 2, "small": 1, "tiny": 0.5}, "middle", ["middle", "large"]),  # but not all are
        ({"large": 9, "middle": 5, "small": 4.98, "tiny": 3}, "tiny", ["middle", "small", "tiny"]),  # not in each round
    ],
)
def test_the_prediction_is_corrected_until_the_file_meets_the_cap(measured, expected, timed, capsys):
    limit = limit_of(5.0 if measured is SINGLE or measured["middle"] != 5 else 4.99, measured)
    found, tried = derived(limit)
    assert (found, tried) == (expected, timed)
    assert limit.found["measured"] == measured[expected] <= limit.found["cap"]
    assert capsys.readouterr().err == ""


def test_where_no_network_meets_the_cap_the_fastest_is_kept_with_a_warning(capsys):
    limit = limit_of(5.0, {"large": 30.0, "middle": 20.0, "small": 11.0, "tiny": 12.0})
    assert derived(limit) == ("tiny", ["middle", "tiny"])
    err = capsys.readouterr().err
    assert "warning: cap.latency_ms is 5 ms, but the fastest of" in err
    assert err.count("\n") == err.count("warning")


def test_a_part_is_of_the_largest_network_timed_in_turn():
    limit = limit_of(4.0, {"large": 16.0, "middle": 9.0, "small": 7.0, "tiny": 1.0}, part=0.5)  # it was 8 at the start
    assert derived(limit)[0] == "small"
    assert limit.found == {"cap": 8.0, "predicted": pytest.approx(4.5, rel=0.1), "measured": 7.0, "ratio": 7 / 16}


def test_a_network_that_cannot_be_exported_is_kept_with_a_warning(capsys):
    limit = limit_of(5.0, SINGLE)

    def fails(name):
        raise ConfigError("no file can hold it", fix="change it")

    limit.times.time = fails
    assert derived(limit)[0] == "middle"
    assert limit.found == {}
    assert capsys.readouterr().err == "warning: cap.latency_ms is not measured: no file can hold it\n"


# -- in a search


def small(in_channels, num_classes, width=4):
    def edge():
        wide = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        return nas.Choice({"thin": nn.Conv2d(width, width, 1), "wide": wide, "skip": nn.Identity()})

    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]
    return nn.Sequential(nn.Conv2d(in_channels, width, 1), edge(), edge(), *last)


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (32, 1, 6, 6), generator=generator, dtype=torch.uint8), torch.arange(32) % 2


@pytest.fixture
def clock(monkeypatch):
    """As slow as it has parameters; what it measures can be made slower."""

    class Parts(Clock):
        def of_call(self, module, args, kwargs):
            self.parts.append(module)
            return 1.0 + self.slower * count_parameters(module)

    made = Parts(lambda network: made.slower * count_parameters(network))
    made.slower = 1.0

    def opened(*, resumed):
        made.known = saved_times(resumed)
        return made

    monkeypatch.setattr("nas.api.FileTimes", opened)
    return made


def test_the_largest_network_has_the_most_multiply_accumulates():
    spec = given.training(images(), given.Reading()).spec
    space = nas.spaces.Custom(factory=small)
    made = nas.ArchParams.from_model(space.supernet(spec))
    assert largest_of(made, space, spec) == {"1": "wide", "2": "wide"}


def test_a_search_meets_a_cap_on_time_and_says_what_was_measured(clock, capsys):
    found = nas.search(small, images(), cap={"latency_ms": 0.6}, **RUN)
    assert "parameters that require a gradient" not in capsys.readouterr().err
    largest = count_parameters(clock.timed[0])
    network = nas.spaces.Custom(factory=small).network(given.training(images(), given.Reading()).spec, found.genotype)
    cap = found.result["cap"]["latency_ms"]
    assert cap["cap"] == pytest.approx(0.6 * largest)
    assert cap["measured"] == count_parameters(network) <= cap["cap"] / 1.01
    assert cap["ratio"] == pytest.approx(cap["measured"] / largest)
    assert found.metrics["regulariser/cap_latency_ms"] >= 0


class Stop(Hook):
    def after_step(self, state):
        if state.epoch == 1:
            raise RuntimeError("stopped")


def stopped_after_an_epoch(directory, cap):
    with pytest.raises(RuntimeError, match="stopped"):
        search_in(directory, cap, hooks=[Stop()])
    return torch.load(directory / "search" / "checkpoint.pt", weights_only=True).get("timed")


def search_in(directory, cap, **settings):
    return nas.search(small, images(), directory=directory, cap=cap, tracker=nas.storage.JsonLines, **RUN, **settings)


def test_a_resumed_search_goes_on_with_what_was_measured(clock, tmp_path):
    cap, part = {"latency_ms": 0.6}, tmp_path / "part"
    saved = stopped_after_an_epoch(part, cap)
    clock.slower = 50.0  # no candidate is timed again, and no cap is judged by other times
    clock.timed.clear()
    clock.parts.clear()
    search_in(part, cap, resume=True)
    assert not clock.parts
    whole = torch.load(part / "search" / "checkpoint.pt", weights_only=True)["timed"]
    assert (whole["table"], whole["whole"]) == (saved["table"], saved["whole"])
    result = json.loads((part / "result.json").read_text())
    assert result["cap"]["latency_ms"] == whole["found"]
    timed = len(clock.timed)
    assert 0 < timed <= 6  # derived networks
    search_in(part, cap, resume=True)  # it has ended: nothing is derived
    assert json.loads((part / "result.json").read_text()) == result
    assert len(clock.timed) == timed


def test_all_of_several_caps_go_on_with_what_was_measured(clock, tmp_path):
    cap, part = {"latency_ms": [0.9, 0.5]}, tmp_path / "part"
    undisturbed = nas.search(small, images(), cap=cap, **RUN)
    stopped_after_an_epoch(part, cap)
    clock.slower = 50.0
    resumed = search_in(part, cap, resume=True)
    for one, other in zip(undisturbed.front, resumed.front, strict=True):
        measured = other.result["cap"]["latency_ms"]
        assert measured["ratio"] == one.result["cap"]["latency_ms"]["ratio"]
        assert other.genotype == one.genotype


def test_each_of_several_networks_has_its_own_time(clock):
    found = nas.search(small, images(), cap={"latency_ms": 0.9, "macs": [0.9, 0.3]}, **RUN)
    for point in found.front:
        made = nas.spaces.Custom(factory=small).network(given.training(images(), given.Reading()).spec, point.genotype)
        assert point.result["cap"]["latency_ms"]["measured"] == count_parameters(made)
    assert found.result["cap"] == found.front[0].result["cap"] != found.front[1].result["cap"]


@pytest.mark.parametrize("before", [{"latency_ms": 250}, {"macs": 0.9}])
def test_another_cap_may_be_asked_for_on_resumption(before, clock, tmp_path):
    part, cap = tmp_path / "part", {"latency_ms": 100}
    stopped_after_an_epoch(part, before)
    resumed = search_in(part, cap, resume=True, may_change=["cap"])
    assert resumed.result["cap"]["latency_ms"]["cap"] == 100
    assert resumed.result["cap"]["latency_ms"]["measured"] <= 100


def test_caps_that_none_meets_together_are_refused_before_the_search(monkeypatch):
    monkeypatch.setattr("nas.methods.search_job.search", None)
    with pytest.raises(ConfigError, match=r"^no architecture within cap\.parameters=.* and cap\.macs=.* was found"):
        nas.search(conflicting, images(), cap={"parameters": 60, "macs": [1766, 1000]}, **RUN)


def conflicting(in_channels, num_classes):
    """Many parameters and few multiply-accumulates, or the other way round."""
    lookup = nn.Sequential(nn.Flatten(), nn.LayerNorm(36), nn.Unflatten(1, (1, 6, 6)))
    edge = nas.Choice({"lookup": lookup, "conv": nn.Conv2d(in_channels, in_channels, 7, padding=3)})
    return nn.Sequential(edge, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))


def test_where_corrected_caps_leave_no_architecture_the_best_so_far_is_kept(capsys):
    limit, made, asked = (
        limit_of(5.0, {"large": 30.0, "middle": 20.0, "small": 11.0, "tiny": 12.0}),
        arch(0, 1, 2, 3),
        [],
    )

    def derive():
        asked.append(limit.factor)
        if len(asked) > 1:
            raise ConfigError("no architecture", fix="raise a cap")
        return WithinCap([limit])(made)

    assert derive_within(limit, derive, arch=made, network=lambda chosen: chosen["a"]) == {"a": "middle"}
    assert len(asked) == 2
    assert "the fastest of 1 derived networks takes 20 ms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cap", "message"),
    [
        (
            1,
            r"^cap\.latency_ms is 1 milliseconds, below the smallest network of the space, expected [0-9.]+ to [0-9.]+",
        ),
        (
            1e6,
            r"^cap\.latency_ms is 1e\+06 milliseconds, above the largest network of the space, expected [0-9.]+ to",
        ),
    ],
)
def test_a_cap_out_of_range(cap, message, clock):
    with pytest.raises(ConfigError, match=message):
        nas.search(small, images(), cap={"latency_ms": cap}, **RUN)


def test_missing_packages_are_named_before_anything_else(monkeypatch):
    monkeypatch.setattr("nas.adapt.file_times.missing_packages", lambda: ["onnx", "onnxruntime"])
    with pytest.raises(ConfigError, match=r"^cap\.latency_ms needs onnx, onnxruntime, which is not installed; pip"):
        nas.search(small, images(), cap={"latency_ms": 0.5}, **RUN)


def test_parts_alike_are_timed_once_and_nested_choices_by_their_first_candidates():
    timed = []

    class Repeat(nn.ReLU):
        def __init__(self, times):
            super().__init__()
            self.times = times

    class Times:
        def of_call(self, module, args, kwargs):
            timed.append(str(module))
            return 2.0

    time = PartClock(Times())
    nested = nn.Sequential(nas.Choice({"one": nn.ReLU(), "two": nn.SiLU()}), nn.Tanh())
    for module, width in ((nn.ReLU(), 3), (nn.ReLU(), 3), (nn.ReLU(), 4), (nested, 3)):
        assert time(functools.partial(module, torch.zeros(1, width))) == 2.0
    assert timed == ["ReLU()", "ReLU()", "Sequential(\n  (0): ReLU()\n  (1): Tanh()\n)"]
    assert isinstance(nested[0], nas.Choice)  # as it was
    timed.clear()
    for times in (1, 10, 1):
        time(functools.partial(Repeat(times), torch.zeros(1, 3)))
    assert timed == ["Repeat()", "Repeat()"]  # which print alike


@pytest.mark.long  # imports the exporter
def test_files_are_timed_by_onnx_runtime():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    wide, thin = (nn.Sequential(nn.Conv2d(3, w, 3), nn.ReLU(), nn.Conv2d(w, w, 3)).eval() for w in (64, 4))
    rounds = nas.adapt.FileTimes().in_turns([wide, thin], torch.zeros(1, 3, 24, 24))
    assert len(rounds) == 5
    assert all(slow > 2 * fast > 0 for slow, fast in rounds)
    with pytest.raises(
        ConfigError, match=r"^cap\.latency_ms times networks and candidates as ONNX files, and torch\.export cannot"
    ):
        nas.adapt.FileTimes().in_turns([nn.LSTM(3, 4)], torch.zeros(1, 3))


@pytest.mark.long  # imports the exporter
def test_tensors_given_by_name_are_inputs_of_the_file():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    times, x = nas.adapt.FileTimes(), torch.zeros(1, 3, 64, 64)
    large = nn.Conv2d(3, 64, 7, padding=3)
    assert times.of_call(large, (), {"input": x}) > 0.3 * times.of_call(large, (x,), {})  # not folded into a constant


@pytest.mark.long  # imports the exporter
def test_what_onnx_runtime_cannot_run_is_one_line():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    x = torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)
    with pytest.raises(
        ConfigError, match=r"^cap\.latency_ms times files in ONNX Runtime, which cannot run this one \("
    ):
        nas.adapt.FileTimes().of_call(nn.Conv2d(3, 4, 3).bfloat16(), (x,), {})
