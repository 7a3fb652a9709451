import json
import math

import pytest
from omegaconf import OmegaConf
from torch import nn

from nas.errors import OutputError
from nas.methods.state import arch_metrics
from nas.settings import configuration
from nas.storage import tensorboard_tracker
from nas.storage.event_tags import probabilities
from nas.storage.metrics_log import JsonLines, read_derived
from nas.storage.tensorboard_tracker import TensorBoard, wall_times
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice
from nas.training.records import compared

TRACKERS = ("jsonl", "tensorboard")  # the others need a client each: test_other_trackers.py


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", TRACKERS)
def test_every_tracker_that_ships_writes_a_line_an_epoch(name, tmp_path):
    node = OmegaConf.load(configuration.directory() / "tracker" / f"{name}.yaml")
    with configuration.build(node, directory=tmp_path) as tracker:
        tracker.log("search", 0, {"weights/loss": 0.1, "temperature": 10.0})
        tracker.log("search", 1, {"weights/loss": 1 / 3})
        tracker.log("retrain", 0, {"weights/loss": 2})
        assert len(lines(tmp_path)) == 3  # whatever interrupts the run, the epochs that are done are there
    assert lines(tmp_path) == [
        {"stage": "search", "epoch": 0, "weights/loss": 0.1, "temperature": 10.0},
        {"stage": "search", "epoch": 1, "weights/loss": 1 / 3},
        {"stage": "retrain", "epoch": 0, "weights/loss": 2},
    ]


def test_a_second_run_appends(tmp_path):
    for epoch in range(2):
        with JsonLines(directory=tmp_path) as tracker:
            tracker.log("search", epoch, {"a": 1.0})
    assert [line["epoch"] for line in lines(tmp_path)] == [0, 1]
    assert (tmp_path / "metrics.jsonl").stat().st_mode & 0o111 == 0  # no program


def test_changes_of_what_is_derived_are_kept(tmp_path):
    with JsonLines(directory=tmp_path) as tracker:
        for epoch, name in enumerate(("a", "a", "b", None)):
            tracker.derived({"x": name})
            tracker.log("search", epoch, {"loss": 1.0})
    first = [{"epoch": epoch, "choices": {"x": name}} for epoch, name in ((0, "a"), (2, "b"), (3, None))]
    assert read_derived(tmp_path / "derived.jsonl") == first
    with (tmp_path / "derived.jsonl").open("a") as stream:
        stream.write('{"epoch": 4, "choices": [1]}\n{"epoch": 5, "choices": {"x": 3}}\n{"epoch": 6, "cho')
    with JsonLines(directory=tmp_path) as resumed:
        resumed.derived({"x": "a"})
        resumed.resume("search", 3, {"loss": 1.0})  # which has the third epoch, and lost the fourth
        resumed.derived({"x": "c"})
        resumed.log("search", 3, {"loss": 1.0})
        resumed.log("retrain", 0, {"loss": 1.0})
    assert read_derived(tmp_path / "derived.jsonl") == [*first[:2], {"epoch": 3, "choices": {"x": "c"}}]
    assert read_derived(tmp_path / "none.jsonl") == []


def test_it_is_closed_after_an_exception(tmp_path):
    tracker = JsonLines(directory=tmp_path)

    def fail():
        with tracker:
            tracker.log("search", 0, {"a": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(ValueError, match="closed"):
        tracker.log("search", 1, {"a": 1.0})
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_lines_are_json_even_when_a_loss_diverged(value, tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON (RFC 8259), and jq and JavaScript refuse it")

    with JsonLines(directory=tmp_path) as tracker:
        tracker.log("search", 0, {"weights/loss": value})
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's reader, which only this test uses
def test_tensorboard_events_read_back(tmp_path):
    with TensorBoard(directory=tmp_path) as tracker:
        for epoch in range(3):
            tracker.log("search", epoch, {"weights/loss": 0.5 * epoch, "probability/cell/0-1/none": 0.25})
        tracker.log("retrain", 0, {"weights/loss": 7.0})
    assert curves(tmp_path) == {
        "search/weights/loss": [(1, 0.0), (2, 0.5), (3, 1.0)],
        "arch/cell/0-1": [(1, 0.25), (2, 0.25), (3, 0.25)],
        "retrain/weights/loss": [(1, 7.0)],
    }


def shown(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"images": 0})
    events.Reload()
    return events


def curves(directory):
    """tag -> [(epoch, value)] of the curves that TensorBoard shows."""
    events = shown(directory)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def log_three(tracker):
    with tracker:
        for epoch in range(3):
            tracker.log("search", epoch, {"loss": float(epoch)})


@pytest.mark.parametrize("tracker", [JsonLines, TensorBoard])
def test_a_resumed_run_repeats_no_epoch_and_leaves_out_none(tracker, tmp_path):
    log_three(tracker(directory=tmp_path))
    with tracker(directory=tmp_path) as resumed:
        resumed.resume("search", 2, {"loss": 1.0})  # the third epoch was logged, but not saved
        resumed.log("search", 2, {"loss": 20.0})
        resumed.log("search", 3, {"loss": 30.0})
        resumed.log("retrain", 0, {"loss": 5.0})
    expected = [("search", 0, 0.0), ("search", 1, 1.0), ("search", 2, 20.0), ("search", 3, 30.0), ("retrain", 0, 5.0)]
    assert [(line["stage"], line["epoch"], line["loss"]) for line in lines(tmp_path)] == expected
    if tracker is TensorBoard:
        assert curves(tmp_path) == {
            "search/loss": [(1, 0.0), (2, 1.0), (3, 20.0), (4, 30.0)],
            "retrain/loss": [(1, 5.0)],
        }


@pytest.mark.parametrize("tracker", [JsonLines, TensorBoard])
def test_an_epoch_that_was_saved_but_not_logged_is_logged(tracker, tmp_path):
    log_three(tracker(directory=tmp_path))
    with tracker(directory=tmp_path) as resumed:
        resumed.resume("search", 4, {"loss": 3.0})
    assert [line["loss"] for line in lines(tmp_path)] == [0.0, 1.0, 2.0, 3.0]
    if tracker is TensorBoard:
        assert curves(tmp_path)["search/loss"] == [(1, 0.0), (2, 1.0), (3, 2.0), (4, 3.0)]


def test_the_other_stage_is_left_alone(tmp_path):
    log_three(JsonLines(directory=tmp_path))
    with JsonLines(directory=tmp_path) as resumed:
        resumed.resume("search", 3, {"loss": 2.0})
        resumed.resume("retrain", 0, {})
        resumed.log("retrain", 0, {"loss": 9.0})
        resumed.resume("search", 3, {"loss": 2.0})
    assert [line["loss"] for line in lines(tmp_path)] == [0.0, 1.0, 2.0, 9.0]


def test_a_line_that_a_crash_has_cut_is_dropped(tmp_path):
    log_three(JsonLines(directory=tmp_path))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-8])
    with JsonLines(directory=tmp_path) as resumed:
        resumed.log("search", 2, {"loss": 2.0})
    assert [line["loss"] for line in lines(tmp_path)] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("damage", [b"\0", b"\x85", b"{", b"\xff", b"\r"])
def test_a_damaged_line_costs_that_line_and_is_named(damage, tmp_path, capsys):
    log_three(JsonLines(directory=tmp_path))
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes()
    second = content.index(b"\n") + 5
    path.write_bytes(content[:second] + damage + content[second + 1 :])
    with JsonLines(directory=tmp_path) as resumed:
        resumed.resume("search", 3, {"loss": 2.0})
    assert [line["loss"] for line in lines(tmp_path)] == [0.0, 2.0]
    assert capsys.readouterr().err == f"warning: {path}: line 2 is damaged and left out, the others are kept\n"


def test_a_file_of_metrics_that_cannot_be_read(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"metrics\.jsonl cannot be read \(a directory, expected a regular file\)"):
        JsonLines(directory=tmp_path)


def test_a_long_log_of_many_candidates_is_resumed(tmp_path):
    text = json.dumps({"stage": "search", "epoch": 0, "probability/" + "x" * 1_900_000: 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(f"{text}\n" for _ in range(30)))  # 57 MB
    with JsonLines(directory=tmp_path) as resumed:
        resumed.resume("search", 1, {})
    with (tmp_path / "metrics.jsonl").open() as stream:
        assert sum(1 for _ in stream) == 30


def test_event_files_of_others_are_left_alone(tmp_path):
    theirs = tmp_path / "events.out.tfevents.1.host.2.0"
    theirs.write_bytes(b"mine")
    for _ in range(2):
        log_three(TensorBoard(directory=tmp_path))
    assert theirs.read_bytes() == b"mine"
    assert len(list(tmp_path.glob("events*"))) == 2


def test_what_was_logged_keeps_its_time_of_day(tmp_path, monkeypatch):
    clock = iter(range(1000, 2000))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))

    def times():
        (events,) = tmp_path.glob("events*")
        return {known: time for known, time in wall_times(events) if known[0]}

    log_three(TensorBoard(directory=tmp_path))
    first = times()
    assert list(first) == [("search", epoch) for epoch in range(3)]
    for epoch in (2, 3):
        with TensorBoard(directory=tmp_path) as resumed:
            resumed.resume("search", epoch, {})
            resumed.log("search", epoch, {"loss": 0.0})
    assert [times()[known] for known in list(first)[:2]] == list(first.values())[:2]
    assert sorted(times().values()) == list(times().values())


def test_an_event_file_that_is_cut_gives_what_is_whole(tmp_path):
    log_three(TensorBoard(directory=tmp_path))
    (events,) = tmp_path.glob("events*")
    events.write_bytes(events.read_bytes()[:-20])
    assert [known for known, _ in wall_times(events)] == [("search", 0), ("search", 1)]
    log_three(TensorBoard(directory=tmp_path))


def darts_line(tau=1.0):
    """Metrics as a search of the DARTS space logs them."""
    operations = [f"op{number}" for number in range(8)]
    keys = [f"{kind}/{a}-{b}" for kind in ("normal", "reduce") for b in range(2, 6) for a in range(b)]
    return {
        "weights/loss": 1.0, "arch/loss": 1.0, "temperature": tau, "entropy/mean": 2.0,
        "gap/derived": 0.5, "collapse/skips": 1,
        **{f"entropy/{key}": 2.0 for key in keys},
        **{f"probability/{key}/{name}": 0.3 if name == "op1" else 0.1 for key in keys for name in operations},
    }, dict.fromkeys(keys, "op1")  # fmt: skip


def test_names_of_choices_and_operations_may_have_slashes():
    sizes = {"conv/3x3": nn.Identity(), "conv/5x5": nn.Identity()}
    model = nn.ModuleList([Choice(sizes | {"none": nn.Identity()}, key="mean"), Choice(sizes, key="normal/0-1")])
    metrics = dict(arch_metrics(ArchParams.from_model(model, init_std=0.0)))
    assert {key: list(of) for key, of in probabilities({"stage": "search", **metrics}).items()} == {
        "mean": ["conv/3x3", "conv/5x5", "none"], "normal/0-1": ["conv/3x3", "conv/5x5"],
    }  # fmt: skip
    assert metrics["entropy/mean"] == pytest.approx((math.log(3) + math.log(2)) / 2)
    assert probabilities({"stage": "search", "probability/a/b/c": 1.0}) == {"a/b": {"c": 1.0}}  # without entropies


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_darts_run_shows_a_card_a_choice_and_pictures(tmp_path):
    line, choices = darts_line()
    with TensorBoard(directory=tmp_path) as tracker:
        tracker.describe(texts={"command": "nas-run ```x"}, settings={"seed": 3, "sampler": "gdas"}, scores=["test/a"])
        for epoch in range(12):
            tracker.derived(choices if epoch < 5 else choices | {"normal/0-2": None})
            tracker.log("search", epoch, line)
        tracker.finish({"test/a": 0.75}, texts={"genotype": "{}"})
    events = shown(tmp_path)
    tags = events.Tags()
    assert len(tags["scalars"]) == 28 + 7
    assert {tag.partition("/")[0] for tag in tags["scalars"]} == {"search", "arch", "gap", "collapse", "test"}
    assert events.Scalars("arch/normal/0-2")[0].value == pytest.approx(0.3)
    assert [event.step for event in events.Images("pictures/derived")] == [1, 6]  # each time that it changed
    assert [event.step for event in events.Images("pictures/heat_map")] == [1, 2, 3, 12]
    assert set(tags["distributions"]) == {"histograms/entropies", "histograms/probabilities"}
    kinds = {one.plugin_data.plugin_name for one in events.summary_metadata.values()}
    assert kinds >= {"custom_scalars", "hparams", "text"}
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_dir()) == []  # no run below this one


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_resumed_run_keeps_pictures_of_the_epochs_that_it_keeps(tmp_path):
    line, choices = darts_line()
    with TensorBoard(directory=tmp_path) as tracker:
        for epoch in range(3):
            tracker.derived({**choices, "normal/0-2": f"op{epoch}"})
            tracker.log("search", epoch, line)
    before = [(one.step, one.wall_time) for one in shown(tmp_path).Images("pictures/derived")]
    with TensorBoard(directory=tmp_path) as resumed:
        resumed.resume("search", 2, line)
        resumed.derived(choices)
        resumed.log("search", 2, line)
    after = [(one.step, one.wall_time) for one in shown(tmp_path).Images("pictures/derived")]
    assert after[:2] == before[:2]
    assert [step for step, _ in after] == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_architecture_that_changes_every_epoch_does_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard_tracker, "DRAWINGS", 3)
    for epochs in (range(4), range(4, 23)):
        with TensorBoard(directory=tmp_path) as tracker:
            for epoch in epochs:
                tracker.derived({"x": f"op{epoch}"})
                tracker.log("search", epoch, {"probability/x/op0": 1.0})
    steps = [one.step for one in shown(tmp_path).Images("pictures/derived")]
    assert steps == [1, 2, 3, 4, 20, 23]  # the first ones, the last ones of both runs, and now and then


def test_of_what_was_derived_only_lines_as_a_run_writes_them_are_read(tmp_path):
    good = json.dumps({"epoch": 3, "choices": {"a": "b", "c": None}})
    others = [f'{{"epoch": {10**400}, "choices": {{}}}}', '{"epoch": -1, "choices": {}}', "[" + "[]," * 800_000 + "[]]"]
    (tmp_path / "derived.jsonl").write_text("\n".join([*others, good, ""]))
    assert read_derived(tmp_path / "derived.jsonl") == [{"epoch": 3, "choices": {"a": "b", "c": None}}]


def test_a_directory_with_the_name_of_an_event_file_stays(tmp_path):
    (tmp_path / "events.out.tfevents.1.x.nas").mkdir()
    TensorBoard(directory=tmp_path).close()
    assert (tmp_path / "events.out.tfevents.1.x.nas").is_dir()


def test_a_retraining_is_compared_by_its_genotype_and_not_by_a_search():
    loop = {"epochs": 5, "batch_size": 8}
    settings = {"seed": 0, "sampler": {"_name_": "gdas"}, "data": {"_name_": "digits"}, "search": loop, "retrain": loop}
    of_both = {"seed": 0, "data": "digits", "retrain.epochs": 5, "retrain.batch_size": 8}
    assert compared(settings) == of_both | {"sampler": "gdas", "search.epochs": 5, "search.batch_size": 8}
    assert compared(settings | {"genotype": "DARTS_V2"}) == of_both | {"genotype": "DARTS_V2"}
