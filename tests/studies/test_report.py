"""The report of a study, from directories as its jobs leave them."""

import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.errors import ConfigError
from nas.report.strips import Strip, strips
from nas.spaces.nas_bench_201_notation import from_text, to_text
from nas.spaces.nas_bench_201_table import EDGES, OPS
from nas.studies.as_markdown import markdown, table as table_of
from nas.studies.as_page import study_page
from nas.studies.baselines import DRAWN, Baselines
from nas.studies.checklist import checklist
from nas.studies.collected import Run, collect, costs, epochs_of_images, what_is_compared
from nas.studies.parts import Grid, digits, number
from nas.studies.plan import Benchmark, from_plain
from nas.studies.report import report
from nas.supernet.genotype import Genotype


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some cells, whose accuracy is the share of their 3x3 convolutions; the drawn cells are among them."""
    path = tmp_path_factory.mktemp("table") / "accuracy.csv"
    cells = dict.fromkeys(DRAWN.values())
    for ops in itertools.islice(itertools.product(OPS, repeat=6), 0, None, 100):
        choices = {f"cell/{edge}": op for edge, op in zip(EDGES, ops, strict=True)}
        cells[to_text(Genotype("nas_bench_201", choices))] = None
    lines = ["index,arch_str,cifar10_test_200,cifar10_valid_12"]
    for index, cell in enumerate(cells):
        share = cell.count("nor_conv_3x3") * 10
        lines.append(f"{index},{cell},{share + index / 1000},{share}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def baselines(table: str, **settings: Any) -> Baselines:
    return Baselines(Benchmark(table, "cifar10_test_200", **settings), seeds=(0, 1, 2))


def test_random_search_chooses_by_validation_and_reports_the_other_column(table: str) -> None:
    of = baselines(table, chosen_by="cifar10_valid_12")
    # The benchmark trains on half of the images of CIFAR-10 for these: 6 times all images a cell.
    assert [of.cells_at_cost(epochs) for epochs in (50, 20, 12, 3)] == [8, 3, 2, None]
    of.benchmark = replace(of.benchmark, chosen_by="cifar100_valid_12")
    assert [of.cells_at_cost(epochs) for epochs in (50, 12, 3)] == [4, 1, None]
    of.benchmark = replace(of.benchmark, chosen_by="cifar10_valid_12")
    assert baselines(table).cells_at_cost(50) is None
    one, many = of.random_search(1), of.random_search(500)
    assert one.keys() == {0, 1, 2}
    assert all(many[seed] >= one[seed] - 0.2 for seed in one)  # 0.2 is what the columns differ by
    assert of.random_cells() == of.random_cells()
    assert [row["name"] for row in of.drawn_cells()] == list(DRAWN)
    assert of.drawn_cells()[0]["accuracy"] >= 60


def test_the_cost_of_a_search_is_counted_in_images() -> None:
    def times(examples: int, train: int, **search: int) -> float:
        used = {"examples": examples, "batches": 10}
        return epochs_of_images({"search_epoch": used, "data": {"train": train}}, search, 12)

    assert [times(25_000, 50_000), times(719, 1439), times(50_000, 50_000), times(40_000, 50_000)] == [12, 12, 24, 19.2]
    assert epochs_of_images({}, {}, 12) == 12
    # The architecture's half is seen in its steps alone: none while the weights warm up, then in every third step.
    assert times(25_000, 50_000, warmup_epochs=8) == 8 / 2 + 4
    assert times(25_000, 50_000, arch_every=3) == 12 / 2 + 12 / 3 / 2
    assert times(50_000, 50_000, warmup_epochs=8, arch_every=4) == 12 + 4 / 4
    assert times(25_000, 50_000, warmup_epochs=13) == 6


def test_nothing_is_chosen_by_test_accuracies(table: str) -> None:
    with pytest.raises(ConfigError, match="expected a column of a validation split"):
        baselines(table, chosen_by="cifar10_test_200")
    with pytest.raises(ConfigError, match="has no column cifar10_valid_25, expected one of cifar10_test_200"):
        baselines(table, chosen_by="cifar10_valid_25")


def left_by_a_job(directory: Path, *, cell: str, status: str = "finished", **manifest: Any) -> None:
    directory.mkdir(parents=True)
    (directory / ".job.json").write_text(
        json.dumps({"number": 0, "status": status, "error": "lost" * (status != "finished")})
    )
    (directory / "result.json").write_text(json.dumps({"genotype": from_text(cell).to_dict()}))
    known = {"status": "finished", "wall_seconds": 90.0, "search_epoch": {"batches": 10}, "commit": "abc", **manifest}
    (directory / "manifest.json").write_text(json.dumps(known))
    line = {"stage": "search", "epoch": 0, "seconds_per_step": 3.0, "benchmark/cifar10_test_200": 50.0}
    (directory / "metrics.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"epoch": 1}) + "\n")


def test_every_run_is_listed(tmp_path: Path, table: str) -> None:
    plan = from_plain(
        {
            "name": "mine", "methods": {"good": "", "bad": ""}, "seeds": [0, 1, 2], "tuning": {"good": 2},
            "primary": ["good", "random cell"],
            "benchmark": {"table": table, "column": "cifar10_test_200", "chosen_by": "cifar10_valid_12"},
        }
    )  # fmt: skip
    best, worst, *_ = DRAWN.values()
    for seed in (0, 1, 2):
        left_by_a_job(tmp_path / "good" / f"seed_{seed}", cell=best)
    left_by_a_job(tmp_path / "bad" / "seed_0", cell=worst, status="failed")
    left_by_a_job(tmp_path / "bad" / "seed_1", cell=worst)
    of = Baselines(plan.benchmark, seeds=plan.seeds)  # type: ignore[arg-type]
    runs = [replace(run, epochs=24) for run in collect(plan, tmp_path, record=".job.json", table=of.table)]
    known = report(plan, runs, [], home=tmp_path, baselines=of, agreement={}, commit="abc")
    assert known["runs"][0]["directory"] == "good/seed_0"
    listed = [(run["method"], run["seed"], run["status"], run["value"] is None) for run in known["runs"]]
    assert listed[:6] == [
        ("good", 0, "finished", False), ("good", 1, "finished", False), ("good", 2, "finished", False),
        ("bad", 0, "failed", True), ("bad", 1, "finished", False), ("bad", 2, "not begun", True),
    ]  # fmt: skip
    (tmp_path / "bad" / "seed_1" / "result.json").write_text('{"genotype": {"sp')
    lost = collect(plan, tmp_path, record=".job.json", table=of.table)[4]
    assert (lost.value, lost.error) == (None, "its result.json does not have what is compared")
    (tmp_path / "bad" / "seed_1" / "result.json").write_text('{"genotype": {"x": 1}}')
    lost = collect(plan, tmp_path, record=".job.json", table=of.table)[4]
    assert (lost.value, "seed_1 is not a genotype" in lost.error) == (None, True)
    (tmp_path / "good" / "seed_0" / "config.yaml").write_text("search: {warmup_epochs: 1, arch_every: 1}\n")
    manifest = {"search_epoch": {"examples": 5, "batches": 10}, "data": {"train": 10}}
    (tmp_path / "good" / "seed_0" / "manifest.json").write_text(json.dumps(manifest))
    assert collect(plan, tmp_path, record=".job.json", table=of.table)[0].epochs == 1.5
    assert {run[0] for run in listed[6:]} == {"random cell", "random search"}
    assert known["methods"]["good"]["std"] == 0.0
    assert known["methods"]["bad"]["n"] == 1
    assert known["random_search"]["cells"] == 4
    short = report(
        plan, [replace(run, epochs=2) for run in runs], [], home=tmp_path, baselines=of, agreement={}, commit="abc"
    )
    assert next(row["why"] for row in short["checklist"] if "random" in row["point"]) == "random cell"
    assert "No random search: not one cell trains for cifar10_valid_12 with the images" in markdown(short)
    assert known["primary"]["one"] == "good"
    cells = of.all_cells()
    assert known["primary"]["difference"] > 0
    assert known["primary"]["difference"] == pytest.approx(cells[0] - cells.mean())
    assert 0 < known["primary"]["p"] <= 1
    assert known["curves"]["good"] == [{"epoch": e, "n": 3, "mean": 50.0, "values": [50.0] * 3} for e in (1, 2)]
    good = known["costs"]["good"]
    assert good == {
        "search": pytest.approx(3 * 60 / 3600),
        "selection": pytest.approx(3 * 30 / 3600),
        "retraining": 0.0,
        "tuning": 2.0,
    }
    assert known["costs"]["bad"]["tuning"] is None
    text = markdown(known)
    assert "| bad | 0 | - | failed: lost |" in text
    assert "one run has no interval" in text
    assert "Named beforehand: good - random cell" in text
    assert f"the mean of 3 random cells of all {len(cells):,} is at least as high" in text
    json.dumps(known)
    page = study_page(known)
    assert page.count("<tr>") == text.count("\n|") - text.count("\n| ---")  # the rows of all tables
    dots = re.findall(r"<circle[^>]*><title>(good|bad|random cell|random search), (seed \d): ", page)
    assert Counter(name for name, _ in dots) == {"good": 3, "bad": 1, "random cell": 3, "random search": 3}
    assert "good: 50.00 at 2" in page  # the curve by epoch
    assert f"good: 50.00 at {2 * 0.5:.4g}" in page  # and by minutes: two epochs of ten steps of three seconds


def test_far_values_stand_at_the_edge_of_a_chart_with_their_number() -> None:
    near = [(93.0 + seed / 10, f"seed {seed}") for seed in range(4)]
    drawn = strips(
        "t", [Strip("near", near, 93.15), Strip("far", [(10.0, "seed 0"), (93.25, "seed 1")], 51.6)], show=number
    )
    assert drawn is not None
    assert ">10.00</text>" in drawn
    marks = [float(text) for text in re.findall(r'text-anchor="middle">([\d.]+)</text>', drawn)]
    assert 92 < min(marks) < max(marks) < 94
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    assert len(set(xs)) == len(xs) == 6
    assert strips("t", [Strip("none", [], 0.0)], show=number) is None


def test_the_checklist_says_no_where_it_is_no(tmp_path: Path) -> None:
    plan = from_plain(
        {"name": "mine", "methods": {"a": "", "b": ""}, "seeds": [0], "tuning": {"a": 0}, "command": "run"}
    )

    def answers(commit: str, epochs: int, teacher: str | None = None, **changes: Any) -> dict[str, str]:
        manifest = {"commit": commit, "device": "cpu", "platform": "linux", "versions": {"torch": "2"}}
        runs = [
            Run(method, 0, tmp_path, "finished", manifest=manifest | of, seconds={"search": 1.0})
            for method, of in (("a", {}), ("b", changes))
        ]
        configs = [
            {"data": {"root": "x"}, "retrain": {"epochs": 5}, "teacher": None},
            {"data": {"root": "x"}, "retrain": {"epochs": epochs}, "teacher": teacher},
        ]
        return {row["point"]: row["answer"] for row in checklist(plan, runs, configs, baselines=())}

    clean, dirty = answers("abc", 5), answers("abc-dirty", 6, device="cuda")
    assert len(clean) == 14
    assert [point for point, answer in clean.items() if answer == "no"] == [
        "ablations are given", "confounders are named", "there are several seeds (4 or more)",
        "there are random baselines", "what tuning took is given",
    ]  # fmt: skip
    assert [point for point in clean if clean[point] != dirty[point]] == [
        "the code of the search is given", "the code that trains the final networks is given",
        "the final networks are trained alike", "all runs had the same hardware and software",
    ]  # fmt: skip
    assert answers("abc", 5, "original")["the final networks are trained alike"] == "no"
    whole, half = {"search": {"one_level": True}}, {"search": {"one_level": False}}  # all images, or half of them
    rows = checklist(plan, [], [whole, half], baselines=())
    assert "all methods see the same data and splits" in [row["point"] for row in rows if "one_level" in row["why"]]


def test_a_method_that_draws_uniformly_is_a_random_baseline() -> None:
    plan = from_plain({"name": "mine", "methods": {"a": "", "drawn": "ops=s1 sampler=uniform"}, "seeds": [0]})
    rows = {row["point"]: row for row in checklist(plan, [], [], baselines=())}
    assert rows["there are random baselines"] | {"group": ""} == {
        "group": "", "point": "there are random baselines", "answer": "yes", "why": "drawn"
    }  # fmt: skip


def test_what_a_benchmark_does_not_give_is_no_value(tmp_path: Path, table: str) -> None:
    benchmark = {"table": table, "column": "cifar10_test_200"}
    plan = from_plain(
        {"name": "mine", "methods": {"a": ""}, "seeds": [0, 1, 2], "command": "run", "benchmark": benchmark}
    )
    for seed, status in ((0, "finished"), (1, "failed"), (2, "finished")):
        place = tmp_path / "a" / f"seed_{seed}"
        left_by_a_job(place, cell=next(iter(DRAWN.values())), status=status)
        result = json.loads((place / "result.json").read_text())
        tested = {
            "metric": {"name": "accuracy"},
            "test_accuracy": 0.5,
        }  # a job may fail after its test, as in an export
        (place / "result.json").write_text(json.dumps(result | tested))
    job = json.loads((place / ".job.json").read_text())
    (place / ".job.json").write_text(json.dumps({**job, "error": None, "refused": "epochs=2 (was 3)"}))
    runs = collect(plan, tmp_path, record=".job.json", table=Baselines(plan.benchmark, seeds=plan.seeds).table)  # type: ignore[arg-type]
    assert [run.value is None for run in runs] == [False, True, True]
    assert runs[0].value is not None
    assert runs[0].value > 1


def test_a_retraining_that_failed_gives_no_score(tmp_path: Path) -> None:
    plan = from_plain({"name": "mine", "methods": {"a": ""}, "seeds": [0], "retrain": {"seeds": [0, 1]}})
    left_by_a_job(tmp_path / "a" / "seed_0", cell=next(iter(DRAWN.values())))
    for seed, status in ((0, "finished"), (1, "failed")):  # after its test, whose loss was not finite
        place = tmp_path / "a" / f"seed_0_retrained_{seed}"
        left_by_a_job(place, cell=next(iter(DRAWN.values())), status=status)
        (place / "result.json").write_text(json.dumps({"metric": {"name": "accuracy"}, "test_accuracy": 0.5}))
    (run,) = collect(plan, tmp_path, record=".job.json", table=None)
    assert (run.value, run.retrained) == (None, {0: 0.5})
    assert run.error == "the retraining with seed 1 gave no score (lost)"
    (place / ".job.json").write_text(json.dumps({"number": 0, "status": "finished"}))
    (run,) = collect(plan, tmp_path, record=".job.json", table=None)
    assert (run.value, run.error) == (0.5, "")

    def answers(*points: str) -> list[str]:
        (run,) = collect(plan, tmp_path, record=".job.json", table=None)
        rows = checklist(plan, [run], [], baselines=())
        return [row["answer"] for row in rows for point in points if point in row["point"]]

    asked = ("the same hardware", "the time of every run")
    assert answers(*asked) == ["yes", "yes"]
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(manifest | {"device": "cuda"}))
    assert answers(*asked) == ["no", "yes"]
    (place / "manifest.json").unlink()
    assert answers(*asked) == ["yes", "no"]


def test_a_study_that_trains_no_network_says_so(tmp_path: Path) -> None:
    plan = from_plain({"name": "mine", "methods": {"a": ""}, "seeds": [0]})
    rows = {row["point"]: row for row in checklist(plan, [], [], baselines=())}
    for point in ("the final networks are trained alike", "the code that trains the final networks is given"):
        assert (rows[point]["answer"], rows[point]["why"]) == ("no", "no final network is trained")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3125, "0.3125"), (93.3667, "93.37"), (None, "-"), (-0.00123, "-0.0012"), (-0.0, "0.0000"),
        (-0.0000345, "-3.45e-05"),
    ],
)  # fmt: skip
def test_fractions_have_more_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_deviations_of_fractions_have_as_many_digits_where_a_mean_is_one() -> None:
    assert [digits({"methods": {"a": {"mean": mean}, "b": {"mean": 0.9}}}) for mean in (1.0, 93.0)] == [".4f", ".2f"]
    assert digits({"methods": {"a": {"mean": -0.0004}}}) == ".2e"
    assert digits({"methods": {}}) == ".4f"


def test_a_report_names_a_metric_of_which_less_is_better(tmp_path: Path) -> None:
    plan = from_plain({"name": "mine", "methods": {"a": ""}, "seeds": [0], "command": "run"})

    def compared(*metrics: tuple[str, bool]) -> str:
        runs = [
            Run("a", 0, tmp_path, "finished", value=1.0, metric={"name": name, "higher_is_better": higher})
            for name, higher in metrics
        ]
        return what_is_compared(plan, runs)

    score = "score of the retrained network on the test split"
    error, accuracy = ("mean_absolute_error", False), ("accuracy", True)
    assert compared(accuracy, accuracy) == score
    assert compared(error, error) == f"{score} (mean absolute error, lower is better)"
    assert compared(accuracy, error) == f"{score} (accuracy; mean absolute error, lower is better)"
    assert what_is_compared(plan, []) == score


def test_names_in_headings_are_escaped() -> None:
    assert table_of(Grid(("a|b",), [("c|d",)])) == ["| a\\|b |", "| --- |", "| c\\|d |"]


def test_costs_of_an_interrupted_run_are_those_of_its_epochs() -> None:
    lines = [
        {"stage": "search", "epoch": 0, "seconds_per_step": 2.0},
        {"stage": "retrain", "epoch": 0, "seconds_per_step": 1.0},
    ]
    manifest = {"search_epoch": {"batches": 5}, "retrain_epoch": {"batches": 3}}
    assert costs(manifest, lines) == {"search": 10.0, "selection": 0.0, "retraining": 3.0}
