"""Settings of regularisers, the collapse monitor and samplers: what the command passes to them, and bad values."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import TINY, Outcome
from custom_models import residual

from nas.storage import checkpoint_file

Nas = Callable[..., Outcome]

# Whatever is learnt, nothing but operations without parameters is derived.
COLLAPSED = "deriver.exclude=[none,nor_conv_1x1,nor_conv_3x3]"


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def manifest(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_text())  # type: ignore[no-any-return]


def test_several_regularisers_and_their_metrics(nas: Nas, tmp_path: Path) -> None:
    chosen = ("regulariser=[entropy,parameters]", "regulariser.parameters.target=10000")
    assert nas("search", *TINY, "tracker=jsonl", *chosen, "hydra.run.dir=out").code == 0
    lines = metrics(tmp_path / "out")
    for line in lines:
        expected = line["regulariser/parameters/expected"]
        assert line["regulariser/parameters"] == pytest.approx(abs(expected / 10_000 - 1), rel=1e-5)
    # By epoch, from exactly the start of its weight to exactly the end.
    assert lines[0]["regulariser/entropy"] == 0
    assert lines[1]["regulariser/entropy"] == pytest.approx(0.1 * lines[1]["entropy/mean"], rel=1e-5)


def test_a_regulariser_moves_the_logits(nas: Nas, tmp_path: Path) -> None:
    pull = ("regulariser=entropy", "regulariser.entropy.weight.start=100", "search.epochs=4", "search.gap_batches=0")
    for name, chosen in (("with", pull), ("without", pull[2:])):
        assert nas("search", *TINY, "tracker=jsonl", *chosen, f"hydra.run.dir={name}").code == 0
    assert metrics(tmp_path / "with")[-1]["entropy/mean"] < metrics(tmp_path / "without")[-1]["entropy/mean"] - 0.001


def test_a_cap_is_held_and_reported(nas: Nas, tmp_path: Path) -> None:
    outcome = nas(
        "run", *TINY, "search.epochs=1", "retrain.epochs=1", "cap.macs=6e4", "cap.parameters=2e4", "hydra.run.dir=out"
    )
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    for name, cap in (("macs", 60_000), ("parameters", 20_000)):
        found = result["cap"][name]
        assert found["cap"] == cap
        assert found["predicted"] == found["measured"] == result[name] <= cap
        assert f"{name}: {result[name]:,} of the derived network, cap {cap:,}" in outcome.out
    refused = nas("search", *TINY, "cap.macs=1", "hydra.run.dir=no")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert (
        "error: cap.macs is 1 multiply-accumulates, below the smallest network of the space, expected " in refused.err
    )
    assert not (tmp_path / "no").exists()


def test_several_caps_are_a_table_of_nas_search_and_refused_by_nas_run(nas: Nas, tmp_path: Path) -> None:
    outcome = nas("search", *TINY, "search.epochs=1", "cap.macs=[5e4,6e4]", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    front = json.loads((tmp_path / "out" / "front.json").read_text())
    assert [one["cap"]["macs"]["cap"] for one in front] == [60_000, 50_000]
    row = f"{front[1]['cap']['macs']['predicted']:,}"
    assert row in outcome.out
    assert row in (tmp_path / "out" / "front.md").read_text()
    refused = nas("run", *TINY, "cap.macs=[5e4,6e4]", "hydra.run.dir=no")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert (
        "error: cap gives 2 networks, expected one for nas-run, which trains one; use nas-search, then" in refused.err
    )
    assert not (tmp_path / "no").exists()


def test_a_dry_run_lists_the_choices_in_a_network_and_leaves_nothing(nas: Nas, tmp_path: Path) -> None:
    torch.save(residual(1, 3).state_dict(), tmp_path / "w.pt")
    data = [setting for setting in TINY if setting.startswith(("data", "search", "runtime"))]
    network = ("space=inserted", "space.factory=custom_models.residual", "space.weights=w.pt", "data.channels=1")
    places = "space.places={1: [skip, {narrower: {fractions: [0.5], multiple_of: 1}}], 2.conv*: depthwise}"
    taught = ("teacher=original", "teacher.share=0.9", "teacher.features={1: 1}")
    outcome = nas("search", *data, *network, *taught, places, "dry_run=true", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    rows = [tuple(part.strip() for part in line.split("│")[1:4]) for line in outcome.out.splitlines() if "│" in line]
    assert rows == [
        ("1", "Residual", "keep, skip, width_0.5"),
        ("2.conv1", "Conv2d", "keep, depthwise"),
        ("2.conv2", "Conv2d", "keep, depthwise"),
    ]
    assert "\nparameters: 411 to 2,475\n" in outcome.out
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_a_dry_run_in_a_space_of_cells(nas: Nas, tmp_path: Path) -> None:
    outcome = nas("search", *TINY, "dry_run=true")
    assert outcome.code == 0, outcome.err
    ((least, most),) = re.findall(r"\nparameters: (.*) to (.*)\n", outcome.out)
    assert 0 < int(least.replace(",", "")) < int(most.replace(",", ""))
    assert not list(tmp_path.iterdir())


def test_the_monitor_counts_every_epoch_and_is_silent_without_cause(nas: Nas, tmp_path: Path) -> None:
    outcome = nas("search", *TINY, "tracker=jsonl", COLLAPSED, "hydra.run.dir=out")
    assert (outcome.code, outcome.err) == (0, "")  # two epochs, where five in a row are needed
    for line in metrics(tmp_path / "out"):
        assert line["collapse/parameter_free"] == 6
        assert 0 <= line["collapse/skips"] <= 6
    assert "search_stopped" not in manifest(tmp_path / "out")


def test_the_monitor_warns_once(nas: Nas, tmp_path: Path) -> None:
    settings = ("search.epochs=4", "monitor.skips=null", "monitor.patience=2", COLLAPSED)
    outcome = nas("search", *TINY, "tracker=jsonl", *settings, "hydra.run.dir=out")
    assert (outcome.code, outcome.err) == (
        0,
        "warning: the search seems to collapse, epoch 2: 6 of 6 derived operations have no parameters, more than 75% "
        "for 2 epochs\n",
    )
    assert len(metrics(tmp_path / "out")) == 4


def test_the_monitor_stops_the_search_and_says_why(nas: Nas, tmp_path: Path) -> None:
    settings = (
        "search.epochs=5", "search.warmup_epochs=1", "monitor.skips=null", "monitor.patience=2", "monitor.stop=true",
        COLLAPSED,
    )  # fmt: skip
    outcome = nas("run", *TINY, "tracker=jsonl", *settings, "hydra.run.dir=out")
    # The epoch of warm-up does not count.
    reason = "epoch 3: 6 of 6 derived operations have no parameters, more than 75% for 2 epochs"
    assert (outcome.code, outcome.err) == (0, f"warning: the search has collapsed and stops, {reason}\n")
    out = tmp_path / "out"
    assert [line["stage"] for line in metrics(out)] == ["search"] * 3 + ["retrain"] * 2
    assert (manifest(out)["search_stopped"], manifest(out)["status"]) == (reason, "finished")
    result = json.loads((out / "result.json").read_text())
    assert result["search_stopped"] == reason
    assert result["genotype"] == json.loads((out / "genotype.json").read_text())


def test_a_step_that_is_not_finite_stops_a_run_that_can_go_on_without_it(nas: Nas, tmp_path: Path) -> None:
    """Three steps an epoch, of two passes each."""
    broken = ("space=custom", "space.factory=broken_numbers.Broken", "space.arguments.passes=[9]")
    tiny = [argument for argument in TINY if "channels" not in argument and "experiment" not in argument]
    settings = ("saving.every_steps=1", "search.gap_batches=0", "tracker=jsonl", "hydra.run.dir=out")
    outcome = nas("search", *tiny, *broken, *settings)
    assert (outcome.code, outcome.err) == (
        2,
        "error: epoch 2, step 2, weights: the loss is nan, expected finite numbers; lower weight_optim.lr, or skip "
        "such steps by runtime.on_nonfinite=skip\n",
    )
    assert manifest(tmp_path / "out")["status"] == "failed"
    saved = checkpoint_file.load(tmp_path / "out" / "search" / "checkpoint.pt", "search")
    assert (saved["epoch"], saved["step"]) == (1, 1)
    skip = ("runtime.on_nonfinite=skip", *broken, "space.arguments.passes=[4]", "may_change=[runtime,space.arguments]")
    outcome = nas("search", "resume=out", *skip)
    assert (outcome.code, outcome.err) == (
        0,
        "warning: epoch 2, step 3, architecture: the loss is nan; this step is skipped, 1 of at most 10\n",
    )
    assert [line.get("skipped_steps") for line in metrics(tmp_path / "out")] == [None, 1]
    assert all(isinstance(line["arch/loss"], float) for line in metrics(tmp_path / "out"))


def test_a_trained_network_whose_outputs_are_not_finite_is_an_error_after_it_is_written(
    nas: Nas, tmp_path: Path
) -> None:
    broken = ("space=custom", "space.factory=broken_numbers.Broken", "space.arguments.what=score")
    tiny = [argument for argument in TINY if "channels" not in argument and "experiment" not in argument]
    trained = ("checkpoint=out/retrain/checkpoint.pt", "runtime.device=cpu", "allow_targets=[broken_numbers]")
    for command, *settings in (
        ("run", *tiny, *broken, "tracker=jsonl", "search.epochs=1", "retrain.epochs=1", "formats=[weights]"),
        ("retrain", *tiny, *broken, "tracker=jsonl", "retrain.epochs=1", "genotype=out/genotype.json"),
        ("evaluate", *trained, "latency.seconds=0"),
        ("export", *trained),
    ):
        outcome = nas(command, *settings, f"hydra.run.dir={'out' if command == 'run' else command}")
        assert (outcome.code, outcome.err) == (
            2,
            "error: the loss of the trained network on the test split is nan, expected a finite number: its outputs, "
            "or the losses of these outputs, are not finite; find out which operations these inputs break, or train "
            "it with a lower retrain.optim.lr\n",
        )
    for directory in ("out", "retrain", "evaluate"):
        text = (tmp_path / directory / "result.json").read_text()
        assert "NaN" not in text
        assert json.loads(text)["test_loss"] is None
    assert not (tmp_path / "out" / "export").exists()
    assert not (tmp_path / "export").exists()


def test_what_is_lost_in_the_last_step_is_not_derived_from(nas: Nas, tmp_path: Path) -> None:
    settings = ("weight_optim.lr=1e30", "search.batch_size=24")  # one step an epoch
    outcome = nas("search", *TINY, *settings, "hydra.run.dir=out")
    assert (outcome.code, outcome.err.split(": ")[1]) == (2, "epoch 1, step 1, architecture")
    assert not (tmp_path / "out" / "genotype.json").exists()
    assert not (tmp_path / "out" / "search" / "checkpoint.pt").exists()


MISTAKES = {
    "unknown regulariser": (
        ("regulariser=entropi",),
        "regulariser=entropi is not an option of regulariser; expected one of beta_decay, "
        "beta_decay_by_epoch, entropy, latency, macs, none, parameters",
    ),
    "no target": (
        ("regulariser=macs",),
        "regulariser.macs.target is not set, and has no default; add regulariser.macs.target=...",
    ),
    "no table": (
        ("regulariser=latency", "regulariser.latency.table=nowhere.json", "regulariser.latency.target=1"),
        "there is no latency table at nowhere.json; set regulariser.latency.table to a file that "
        "scripts/measure_latency has written",
    ),
    "no samples": (("sampler.samples=0",), "sampler.samples must be at least 1, got 0; set sampler.samples=1"),
    "one draw without others": (
        ("sampler=score_function", "sampler.samples=1"),
        "sampler.samples must be at least 2, got 1, as each network is a baseline for the others; set "
        "sampler.samples=2",
    ),
    "shares without a gradient": (
        ("sampler=score_function", "space.edge_normalisation=true"),
        "ScoreFunction learns from losses alone and gives shares no gradient, got weighed choices (edge "
        "normalisation); set space.edge_normalisation=false, or another sampler, e.g. sampler=gdas",
    ),
    "second order of losses": (
        ("sampler=score_function", "searcher=second_order"),
        "second-order search needs a sampler whose gates are a smooth function of the logits, got ScoreFunction; set "
        "sampler=softmax, gumbel_softmax or dirichlet, or searcher=first_order",
    ),
    "fraction": (
        ("monitor.skips=2",),
        "monitor.skips is a fraction of the derived choices in [0, 1], got 2; set monitor.skips to e.g. 0.5, or null "
        "for no limit",
    ),
    "patience": (
        ("monitor.patience=0",),
        "monitor.patience must be a whole number of at least 1, got 0; set monitor.patience=1",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_told_in_one_line_and_leaves_nothing(case: str, nas: Nas, tmp_path: Path) -> None:
    overrides, message = MISTAKES[case]
    outcome = nas("run", *TINY, *overrides)
    # Paths are told whole.
    assert (outcome.code, outcome.err.replace(f"{tmp_path}/", "")) == (2, f"error: {message}\n")
    assert not any(tmp_path.iterdir())


def test_softmax_draws_nothing_that_could_be_averaged(nas: Nas) -> None:
    outcome = nas("run", *TINY, "sampler=softmax", "sampler.samples=2")
    assert outcome.code == 2
    assert outcome.err.startswith("error: sampler.samples is not a setting; ")


@pytest.mark.long
def test_pc_darts_searches_in_part_and_retrains_whole(nas: Nas, tmp_path: Path) -> None:
    chosen = ("space=darts", "space.channels=8", "space.cells=3", "sampler=softmax", "retrain.network.channels=8")
    arguments = (*TINY, "tracker=jsonl", *chosen, "retrain.network.cells=3", "search.epochs=1", "retrain.epochs=1")
    assert nas("search", *arguments, "hydra.run.dir=whole").code == 0
    partial = ("space.partial_channels=4", "space.edge_normalisation=true")
    assert nas("run", *arguments, *partial, "hydra.run.dir=part").code == 0
    searches = {name: metrics(tmp_path / name)[0] for name in ("whole", "part")}
    assert not any(metric.startswith("share/") for metric in searches["whole"])
    into_last = [value for metric, value in searches["part"].items() if re.fullmatch(r"share/normal/\d-5", metric)]
    assert len(into_last) == 5
    assert sum(into_last) == pytest.approx(1)
    # Of one size where they derive the same: the retrained network is whole in both.
    genotype = str(tmp_path / "part" / "genotype.json")
    retrain = (*TINY, *chosen, "retrain.network.cells=3", "retrain.epochs=1", f"genotype={genotype}")
    assert nas("retrain", *retrain, "hydra.run.dir=again").code == 0
    sizes = [json.loads((tmp_path / name / "result.json").read_text())["parameters"] for name in ("part", "again")]
    assert sizes[0] == sizes[1]


@pytest.mark.long  # precision and compiler are each tested in tests/runtime
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_and_a_compiler_through_the_command(nas: Nas, tmp_path: Path, precision: str) -> None:
    chosen = (f"runtime.precision={precision}", "runtime.compile=aot_eager", "tracker=jsonl")
    small = ("space.nodes=3", "retrain.drop_path=0.2", "hydra.run.dir=out")  # compiling takes its time
    assert nas("run", *TINY, *chosen, *small).code == 0
    assert all(math.isfinite(line["weights/loss"]) for line in metrics(tmp_path / "out"))
    whole = json.loads((tmp_path / "out" / "result.json").read_text())
    # What is reported is measured in fp32, whatever the training was in.
    scoring = ("checkpoint=out/retrain/checkpoint.pt", "runtime.device=cpu", "latency.batches=[]", "hydra.run.dir=eval")
    assert nas("evaluate", *scoring).code == 0
    again = json.loads((tmp_path / "eval" / "result.json").read_text())
    assert (again["test_accuracy"], again["test_loss"]) == (whole["test_accuracy"], whole["test_loss"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("search.warmup_epochs=2",), True),
        (("search.arch_every=7",), True),  # of 6 steps
        (("search.arch_every=6",), False),
        (("search.warmup_epochs=1", "search.arch_every=6"), False),
    ],
)
def test_a_search_in_which_the_architecture_takes_no_step_is_told(
    nas: Nas, settings: tuple[str, ...], told: bool
) -> None:
    outcome = nas("search", *TINY, "tracker=jsonl", "search.gap_batches=0", *settings, "hydra.run.dir=out")
    assert outcome.code == 0
    assert outcome.err.startswith("warning: the architecture takes no step in 2 epochs of 3 steps with ") == told
    assert ("arch/loss" in metrics(Path("out"))[-1]) != told
