"""Search, retraining and export through the commands: the files of a run, and equal results for equal seeds."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import TINY, Outcome

from nas.cli.mistakes import untouched
from nas.cli.stages.for_report import changed

Nas = Callable[..., Outcome]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def finished(nas: Nas, tmp_path: Path) -> Path:
    """The directory of a tiny nas-run."""
    outcome = nas("run", *TINY, "hydra.run.dir=first")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"Everything is in {tmp_path}/first" in outcome.out
    return tmp_path / "first"


def test_a_setting_may_name_the_seed() -> None:
    cfg = untouched("run")
    cfg.name, cfg.seed, cfg.search.batch_size = "mine", 7, "${seed}"
    assert changed(cfg) == {"search.batch_size": [64, 7]}


def test_a_run_leaves_everything_in_one_place(finished: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert {path.name for path in tmp_path.iterdir()} == {"first"}
    events = [path.name for path in finished.glob("events.out.tfevents.*")]
    assert len(events) == 1
    assert {path.name for path in finished.iterdir()} - set(events) == {
        "config.yaml", "manifest.json", "metrics.jsonl", "genotype.json", "result.json", "search", "retrain", "export",
        "derived.jsonl", "mistakes.json",
    }  # fmt: skip
    assert {path.name for path in (finished / "export").iterdir()} == {
        "genotype.json", "metadata.json", "MODEL_CARD.md",
    }  # fmt: skip

    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["command"] == ["nas-run", *TINY, "hydra.run.dir=first"]
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["seed"] == 0
    assert manifest["wall_seconds"] > 0
    assert manifest["peak_memory_bytes"] > 10_000_000
    assert manifest["changed"]["search.epochs"] == [50, 2]
    assert manifest["changed"]["data._name_"] == ["digits", "synthetic"]
    assert not {"seed", "name"} & set(manifest["changed"])
    assert [(one["batch"], one["median_ms"] > 0) for one in manifest["latency"]] == [(1, True)]
    assert {line["epoch"] for line in lines(finished / "derived.jsonl")} <= {0, 1}
    mistakes = json.loads((finished / "mistakes.json").read_text())
    wrong = sum(n for true, of in json.loads((finished / "result.json").read_text())["test_confusion"].items()
                for name, n in of.items() if name != true)  # fmt: skip
    assert len(mistakes) == min(24, wrong)
    assert "${" not in (finished / "config.yaml").read_text()  # resolved

    metrics = lines(finished / "metrics.jsonl")
    assert [(line["stage"], line["epoch"]) for line in metrics] == [
        ("search", 0), ("search", 1), ("retrain", 0), ("retrain", 1),
    ]  # fmt: skip
    assert [line["temperature"] for line in metrics[:2]] == [10.0, 0.1]

    accumulator = EventAccumulator(str(finished))
    accumulator.Reload()
    tags = set(accumulator.Tags()["scalars"])
    assert not any("probability" in tag for tag in tags)
    assert {tag for tag in tags if tag.startswith("arch/")} == {f"arch/{key}" for key in genotype_keys(finished)}
    assert tags >= {
        "search/weights/loss", "search/arch/loss", "search/weights/accuracy", "search/arch/accuracy",
        "search/temperature", "search/lr/weights", "search/lr/arch", "search/entropy",
        "test/accuracy", "test/parameters", "search/weights/grad_norm", "search/arch/grad_norm",
        "search/seconds_per_step", "search/examples_per_second", "search/derived_parameters",
        "retrain/weights/loss", "retrain/weights/accuracy", "retrain/lr/weights",
    }  # fmt: skip
    curve = [(event.step, event.value) for event in accumulator.Scalars("search/temperature")]
    assert [step for step, _ in curve] == [1, 2]
    assert [value for _, value in curve] == pytest.approx([10.0, 0.1])
    pictures = {f"pictures/{name}" for name in ("derived", "heat_map", "history", "leading")}
    assert set(accumulator.Tags()["images"]) == pictures
    texts = {"settings/text_summary", "command/text_summary", "genotype/text_summary", "notation/text_summary"}
    assert texts | {"_hparams_/experiment"} <= accumulator.summary_metadata.keys()


def genotype_keys(run: Path) -> list[str]:
    return list(json.loads((run / "genotype.json").read_text())["choices"])


def test_the_result_is_that_of_the_exported_network_and_of_the_checkpoint(finished: Path, nas: Nas) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["test_examples"] == 16
    assert result["test_accuracy_interval"][0] <= result["test_accuracy"] <= result["test_accuracy_interval"][1]
    assert result["test_negative_log_likelihood"] == pytest.approx(result["test_loss"], rel=1e-5)
    right = sum(row.get(name, 0) for name, row in result["test_confusion"].items())
    assert right / 16 == result["test_accuracy"]
    assert [measured["examples"] for measured in result["test_per_class"].values()] == [6, 5, 5]
    assert result["genotype"] == json.loads((finished / "genotype.json").read_text())

    checkpoint = f"checkpoint={finished}/retrain/checkpoint.pt"
    del result["discretisation_gap"]  # of the search, so neither in the checkpoint nor in the export
    outcome = nas("evaluate", checkpoint, "latency.seconds=0", "latency.batches=[1,3]", "hydra.run.dir=scored")
    assert outcome.code == 0
    scored = json.loads(Path("scored/result.json").read_text())
    assert {name: scored[name] for name in result} == result
    assert set(scored) - set(result) == {"data_found", "latency", "device", "peak_memory_bytes", "peak_memory_of"}
    assert [measured["batch"] for measured in scored["latency"]] == [1, 3]
    for measured in scored["latency"]:
        assert 0 < measured["median_ms"] <= measured["p95_ms"]
        assert measured["runs"] == 10
    assert scored["peak_memory_bytes"] > 10_000_000
    assert scored["device"].startswith("cpu, ")
    for shown in ("95 % interval", "expected calibration error", "latency, batch of 3", "class_2", scored["device"]):
        assert shown in outcome.out

    exported = nas("export", checkpoint, "hydra.run.dir=exported", "formats=[]")
    assert exported.code == 0
    assert "none of the files holds the network, as no format was chosen; formats=[weights] does" in exported.out
    metadata = json.loads(Path("exported/metadata.json").read_text())
    assert metadata["results"] == result
    assert json.loads((finished / "export/metadata.json").read_text())["results"] == result
    assert Path("exported/genotype.json").read_text() == (finished / "genotype.json").read_text()


def test_search_and_retrain_give_what_run_gives(finished: Path, nas: Nas) -> None:
    assert nas("search", *TINY, "hydra.run.dir=search").code == 0
    assert Path("search/genotype.json").read_text() == (finished / "genotype.json").read_text()
    result = json.loads((finished / "result.json").read_text())
    gap = result.pop("discretisation_gap")
    assert gap.pop("retrained_test") == result["test_accuracy"]
    assert json.loads(Path("search/result.json").read_text()) == {
        "metric": result["metric"],
        "derived_parameters": result["parameters"],
        "data": result["data"],
        "genotype": result["genotype"],
        "discretisation_gap": gap,
    }

    assert nas("retrain", *TINY, "genotype=search/genotype.json", "hydra.run.dir=retrain").code == 0
    assert json.loads(Path("retrain/result.json").read_text()) == result


# Every option of the recipe at once, each of which is off without its override.
OPTIONS = (
    "retrain.label_smoothing=0.1",
    "retrain.mixup=0.2",
    "retrain.cutmix=1.0",
    "retrain.average=0.9",
    "retrain.accumulation=2",
    "policy@retrain.policy=trivial_augment",
    "optim@retrain.optim=adamw",
    "lr@retrain.lr=one_cycle",
)


CELL = 'genotype="|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_3x3~0|skip_connect~1|avg_pool_3x3~2|"'


def test_all_options_of_the_recipe_together(nas: Nas) -> None:
    for directory in ("one", "two"):
        assert nas("retrain", *TINY, CELL, *OPTIONS, f"hydra.run.dir={directory}").code == 0
    assert without_time(lines(Path("one/metrics.jsonl"))) == without_time(lines(Path("two/metrics.jsonl")))
    state = torch.load("one/retrain/checkpoint.pt", weights_only=True)
    assert any(not torch.equal(state["network"][name], state["trained_network"][name]) for name in state["network"])
    assert state["average_updates"] == 6
    # What is scored is the average, and it is what the checkpoint gives back.
    arguments = ("checkpoint=one/retrain/checkpoint.pt", "latency.batches=[]", "hydra.run.dir=scored")
    assert nas("evaluate", *arguments).code == 0
    result, scored = (json.loads(Path(path).read_text()) for path in ("one/result.json", "scored/result.json"))
    assert {name: scored[name] for name in result} == result


@pytest.mark.long
def test_each_option_alone_changes_the_training(nas: Nas) -> None:
    losses: dict[str, float] = {}
    for number, option in enumerate(("retrain.epochs=2", *OPTIONS)):  # the first changes nothing
        assert nas("retrain", *TINY, CELL, option, f"hydra.run.dir={number}").code == 0, option
        losses[option] = json.loads(Path(f"{number}/result.json").read_text())["test_loss"]
    assert len(set(losses.values())) == len(losses), losses


TIMES = {"seconds", "seconds_per_step", "examples_per_second"}


def without_time(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in metrics]


def assert_equal(a: Any, b: Any, where: str) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - TIMES:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{where}.{index}")
    else:
        assert a == b, where


def test_the_same_seed_gives_the_same_bits(finished: Path, nas: Nas) -> None:
    assert nas("run", *TINY, "hydra.run.dir=second").code == 0
    assert nas("run", *TINY, "hydra.run.dir=other", "seed=1").code == 0
    for stage, weights in (("search", "supernet"), ("retrain", "network")):
        first, second, other = (
            torch.load(directory / stage / "checkpoint.pt", weights_only=True)
            for directory in (finished, Path("second"), Path("other"))
        )
        assert_equal(first, second, stage)
        assert not all(torch.equal(first[weights][name], other[weights][name]) for name in first[weights])
    assert without_time(lines(finished / "metrics.jsonl")) == without_time(lines(Path("second/metrics.jsonl")))
    assert (finished / "genotype.json").read_bytes() == Path("second/genotype.json").read_bytes()


def test_interrupted_before_the_run_began(nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.data.synthetic import Synthetic

    def interrupt(self: Synthetic) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Synthetic, "load", interrupt)
    assert nas("run", *TINY, "hydra.run.dir=cut") == (130, "", "error: interrupted before anything was done\n")
    assert not (tmp_path / "cut").exists()


def test_interrupted_run_keeps_what_it_reached(nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.training.progress_bar import Progress

    def interrupt(self: Progress, epoch: int, fraction: float) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "step", interrupt)
    outcome = nas("run", *TINY, "hydra.run.dir=cut")
    assert outcome.code == 130
    assert outcome.err == f"error: interrupted; what was reached is in {tmp_path}/cut\n"
    assert json.loads(Path("cut/manifest.json").read_text())["status"] == "interrupted"
    assert torch.load("cut/search/checkpoint.pt", weights_only=True)["epoch"] == 1
    assert len(lines(Path("cut/metrics.jsonl"))) == 1
    assert Path("cut/genotype.json").exists()


def test_a_data_set_of_another_kind_is_refused(finished: Path, nas: Nas) -> None:
    outcome = nas("evaluate", f"checkpoint={finished}/retrain/checkpoint.pt", "data=digits")
    assert outcome.code == 2
    assert "the data set digits has channels 1, expected 3 as in training" in outcome.err


def test_start_up_leaves_torch_alone() -> None:
    code = "import nas.cli.run, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
