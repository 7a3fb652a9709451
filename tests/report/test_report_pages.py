"""nas-report: pages from what is left on the disk, whatever it is."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from written_runs import KEYS, write_run

from nas.cli.report_runs import main, run
from nas.errors import OutputError
from nas.report.as_text import compact
from nas.report.charts import heat_png, pareto, thinned, ticks
from nas.report.markup import Html, el
from nas.report.page import page_of_one, page_of_several, report
from nas.report.run_files import RunFiles, read_run, tell_apart
from nas.report.several_runs import MOST_TILES, Groups, overlaid, summary


class Texts(HTMLParser):
    """All texts, the tags that are open, and whether each is closed."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.open, self.ids = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1:] not in (["style"], ["script"]):
            self.texts.append(data)


def texts(page):
    return "\n".join(Texts(page).texts)


# -- one run


def test_the_page_of_a_run(tmp_path):
    page = report([write_run(tmp_path / "my_run")])
    parsed = Texts(page)
    assert parsed.ids == ["main", "overview", "curves", "edges", "gap", "test", "settings", "load", "manifest"]
    shown = "\n".join(parsed.texts)
    for expected in (
        "my_run", "finished", "nas_bench_201, gdas, digits", "90.00 %", "95 %: 80.00 to 95.00 %", "1 k",
        "123 k", "2.5 ms", "1 min 15 s", "6 epochs", "nas-run sampler=gdas", "skip_connect derived from epoch 1 to 3",
        "conv_3x3 derived from epoch 4 to 6", "cell/0-1 changed, epoch 4", "search.epochs",
        "confidence 50 %: 25 % of 4 right", "relaxed 80.00 %, derived 30.00 %, recalibrated 70.00 %, retrained 90.00 %",
    ):  # fmt: skip
        assert expected in shown, expected


def test_a_run_that_only_retrains_shows_no_sampler(tmp_path):
    run = write_run(tmp_path / "a")
    config = json.loads((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(json.dumps(config | {"genotype": "DARTS_V2"}))
    shown = texts(report([run]))
    assert "genotype\nDARTS_V2\n" in shown
    assert "nas_bench_201, digits\n" in shown
    assert not re.search(r"^(sampler|searcher|deriver)$", shown, re.MULTILINE)
    evaluation = tmp_path / "nas-evaluate_evaluation"  # no run, but beside the runs
    evaluation.mkdir()
    shutil.copy(run / "result.json", evaluation)
    searched = write_run(tmp_path / "b")
    shown = texts(report([tmp_path]))
    assert "2 finished" in shown
    assert "sampler\nnot set\ngdas\n" in shown
    assert "3 runs" in texts(report([run, searched, evaluation]))


def test_the_page_says_what_a_benchmark_knows_of_the_derived_cell(tmp_path):
    run = write_run(tmp_path / "a")
    assert "benchmark" not in texts(report([run]))
    result = json.loads((run / "result.json").read_text())
    columns = {"<b>": {"accuracy": 93.375, "rank": 874, "of": 15625}, "y": {"accuracy": "a"}, "z": {"accuracy": 7}}
    (run / "result.json").write_text(json.dumps(result | {"benchmark": {"columns": columns}}))
    assert "What the benchmark knows of it\n<b>\n93.38 %, rank 874 of 15,625\nz\n7.00 %\n" in texts(report([run]))


def test_it_needs_nothing_from_elsewhere(tmp_path):
    page = report([write_run(tmp_path / "a")])
    assert "default-src &#x27;none&#x27;" in page
    for word in ("http://", "https://", "@import", "url(", "<iframe", 'src="/'):
        assert word not in page


def test_names_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'&\x1b[2J"
    directory = write_run(tmp_path / "<img src=x onerror=alert(1)>", names=[evil, "b", "c"], sampler=evil)
    line = {"stage": "search", "epoch": 6, f"probability/{evil}/{evil}": 0.5}
    with (directory / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    (directory / "genotype.json").write_text(json.dumps({"space": evil, "choices": {evil: evil}}))
    for page in (report([directory]), report([directory, write_run(tmp_path / "b")])):
        assert page.count("<script") == 1
        assert "<img src=x" not in page
        assert "\x1b" not in page
        assert "<script>alert(1)</script>" in texts(page)
    assert el("p", Html("<b>"), "<i>", None, [1, "&"], title='"<') == '<p title="&quot;&lt;"><b>&lt;i&gt;1&amp;</p>'


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ({"status": "running", "process": f"{os.getpid()} on {platform.node()}"}, "Still running."),
        ({"status": "running", "process": f"{2**31 - 1} on {platform.node()}"}, "Killed before its end."),
        ({"status": "running", "process": "7 on another"}, "Still running, or killed: the process was 7 on another."),
        ({"status": "interrupted"}, "Interrupted before its end."),
        ({"status": "failed"}, "Failed before its end."),
        ({"status": "finished", "versions": {"gumbel-nas": "0.0.1"}}, "Written by release 0.0.1"),
        ({"status": "finished", "versions": {"gumbel-nas": "0.1.0"}}, "Written by an older release"),
        ([1, 2], "manifest.json is missing or damaged"),
    ],
)
def test_a_run_that_is_not_as_usual_says_so(tmp_path, manifest, expected):
    directory = write_run(tmp_path / "a")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert expected in texts(report([directory]))
    made_in_python = {"status": "finished", "versions": {"gumbel-nas": "0.1.0"}, "made_in": "Python"}
    (directory / "manifest.json").write_text(json.dumps(made_in_python))
    assert "older release" not in texts(report([directory]))


# -- whatever is there instead


BAD = {
    "truncated": lambda run: (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:-30]),
    "nan": lambda run: (run / "metrics.jsonl").write_text(
        '{"stage": "search", "epoch": 0, "weights/loss": NaN, "arch/loss": 1e400, "probability/a/b": null}\n'
    ),
    "no metrics": lambda run: (run / "metrics.jsonl").unlink(),
    "no result": lambda run: (run / "result.json").unlink(),
    "no genotype": lambda run: ((run / "genotype.json").unlink(), (run / "derived.jsonl").unlink()),
    "fifo": lambda run: ((run / "metrics.jsonl").unlink(), os.mkfifo(run / "metrics.jsonl")),
    "binary": lambda run: [path.write_bytes(b"\xff\x00{[") for path in run.iterdir() if path.is_file()],
    "nested": lambda run: (run / "result.json").write_text("[" * 100_000),
    "alone": lambda run: [path.unlink() for path in run.iterdir() if path.name != "result.json"],
    "empty": lambda run: [path.write_text("") for path in run.iterdir()],
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_damaged_or_missing_gives_a_page_that_says_so(tmp_path, what):
    directory = write_run(tmp_path / "a")
    BAD[what](directory)
    assert "finished" in texts(report([directory])) or "missing or damaged" in texts(report([directory]))
    Texts(report([directory, write_run(tmp_path / "b")]))
    if what == "truncated":
        assert "metrics.jsonl: 1 damaged line is left out" in texts(report([directory]))


KINDS = (None, -1, float("nan"), "<x>", [[]], {"a": {"b": [None]}}, [{"accuracy": "x"}], True)


def test_values_of_any_kind_give_a_page(tmp_path):
    """Every value of every file replaced by values of other kinds, one after the other."""
    directory = write_run(tmp_path / "a", epochs=2)
    for name in ("manifest.json", "result.json", "genotype.json", "mistakes.json", "config.yaml"):
        content = json.loads((directory / name).read_text())
        for number, value in enumerate(KINDS):
            if isinstance(content, dict):
                some = [key for index, key in enumerate(content) if index % len(KINDS) == number]
                changes = [content | dict.fromkeys(keys, value) for keys in (content, some)]
            else:
                changes = [[value]]
            for changed in changes:
                (directory / name).write_text(json.dumps(changed))
                read = read_run(directory, points=5)
                assert page_of_one(read).endswith("</html>\n")
                assert page_of_several([read, read]).endswith("</html>\n")
        (directory / name).write_text(json.dumps(content))


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("x"), lambda path: None])
def test_what_is_no_run_is_one_line(tmp_path, make, capsys, monkeypatch):
    make(tmp_path / "x")
    monkeypatch.setattr(sys, "argv", ["nas-report", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


def test_where_the_page_goes(tmp_path, monkeypatch):
    one, two = write_run(tmp_path / "runs" / "a"), write_run(tmp_path / "runs" / "b")
    monkeypatch.chdir(tmp_path)
    assert run([str(one)]) == one / "report.html"
    assert run([str(tmp_path / "runs")]) == tmp_path / "runs" / "report.html"
    assert run([str(one), str(two), "out=both.html"]).read_text().count("<title>2 runs</title>") == 1
    for out in ("out=page.pdf", "out=nowhere/page.html"):
        with pytest.raises(OutputError, match=r"\.html|no directory"):
            run([str(one), out])


def test_numbers_that_no_axis_can_hold_give_a_page(tmp_path):
    """Whose differences are infinite, or too small for a power of ten; and bins without an example."""
    run = write_run(tmp_path / "run", epochs=2)
    losses = [(1.7e308, 0.0), (-1.7e308, 5e-324)]
    lines = [
        json.dumps({"stage": "search", "epoch": epoch, "weights/loss": huge, "temperature": tiny})
        for epoch, (huge, tiny) in enumerate(losses)
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    result = json.loads((run / "result.json").read_text())
    gap = {"relaxed": 1.7e308, "derived": -1.7e308, "recalibrated": 0.5, "retrained_test": 0.5}
    (run / "result.json").write_text(
        json.dumps(result | {"discretisation_gap": gap, "test_calibration": [[0.5, 0.5, 0.5]]})
    )
    (run / "derived.jsonl").write_text('{"epoch": %s, "choices": {"cell/0-1": "none"}}\n' % (10**400))
    page = report([run])
    assert "Temperature" in page
    assert "losses of both levels" not in page


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("result.json", "[" + "1.5," * 9_000_000 + "1]", "more than 4000000 values"),
        ("config.yaml", "- 1\n" * 70_000, "expected at most 250000"),
        ("metrics.jsonl", "\n" * 300_000, "more than 100,000 lines"),
    ],
    ids=["numbers", "yaml", "lines"],
)
def test_files_that_would_fill_the_memory_are_left_out(name, content, said, tmp_path):
    run = write_run(tmp_path / "run", epochs=1)
    (run / name).write_text(content)
    assert said in report([run])


def test_long_runs_and_many_classes_stay_small(tmp_path):
    directory = write_run(tmp_path / "a", epochs=1, classes=300)
    line = '{"stage": "search", "epoch": %d, "weights/loss": %f, "probability/a/b": 0.5}\n'
    (directory / "metrics.jsonl").write_text("".join(line % (epoch, epoch % 7) for epoch in range(20_000)))
    page = report([directory])
    assert len(page) < 300_000
    assert "20,000 epochs" in texts(page)
    assert "Accuracy of the 40 worst of 300 classes" in texts(page)
    assert "The most frequent confusions of 300 classes" in texts(page)


# -- several runs


def test_several_runs_are_grouped_and_compared(tmp_path):
    runs = [write_run(tmp_path / f"{sampler}_{seed}", sampler=sampler, seed=seed, accuracy=0.8 + 0.05 * seed)
            for sampler in ("gdas", "softmax") for seed in (0, 1)]  # fmt: skip
    genotype = json.loads((runs[0] / "genotype.json").read_text())
    genotype["choices"][KEYS[1]] = "none"
    (runs[0] / "genotype.json").write_text(json.dumps(genotype))
    shown = texts(report(runs))
    assert "4 runs" in shown
    assert "82.50 %" in shown  # the mean of each group
    assert "± 3.54 % test accuracy, 2 runs" in shown
    assert "2 of 3 choices are the same in all 4 runs." in shown
    assert "3 of 4" in shown
    assert "softmax_1: 85.00 %, 1.1 k, on the Pareto front" in shown


def test_runs_whose_directories_have_one_name_are_told_apart(tmp_path):
    places = [tmp_path / "one" / "a" / "seed_0", tmp_path / "one" / "b" / "seed_0", tmp_path / "two" / "b" / "seed_0"]
    runs = [RunFiles(place) for place in (*places, tmp_path / "mine", Path("/"))]
    tell_apart(runs)
    assert [run.name for run in runs] == ["a/seed_0", "one/b/seed_0", "two/b/seed_0", "mine", "/"]


def test_runs_of_other_settings_are_no_group(tmp_path):
    def groups(*configs, choices="ab"):
        runs = [RunFiles(tmp_path / str(i), config=config, genotype={"choices": {"x": name}})
                for i, (config, name) in enumerate(zip(configs, choices, strict=True))]  # fmt: skip
        return [(label, len(of)) for label, _, of in Groups(runs).members()]

    place = "/home/" + "runs_of_somebody/" * 5
    told = groups({"genotype": f"{place}1/x.json"}, {"genotype": f"{place}2/x.json"})
    assert [(label[-8:], count) for label, count in told] == [("1/x.json", 1), ("2/x.json", 1)]
    retrained = {"seed": 0, "retrain": {"epochs": 5}}  # in Python, which records the genotype in a file of its own
    assert groups(retrained, retrained | {"seed": 1}) == [('{"x": "a"}', 1), ('{"x": "b"}', 1)]
    assert groups(retrained, retrained | {"seed": 1}, choices="aa") == [("all runs", 2)]
    searched = retrained | {"search": {"epochs": 5}}
    assert groups(searched, searched | {"seed": 1}) == [("all runs", 2)]


def test_means_of_many_groups_are_shown_or_counted(tmp_path):
    def shown(count):
        scored = {"metric": {"name": "accuracy"}, "test_accuracy": 0.5}
        return str(summary(Groups([RunFiles(tmp_path / str(i), config={"a": i}, result=scored) for i in range(count)])))

    assert (shown(9).count('class="tile"'), "not shown" in shown(9)) == (9, False)
    assert "2 more groups are not shown: give fewer runs." in shown(MOST_TILES + 2)


def test_scores_of_other_metrics_are_named_and_in_no_common_chart(tmp_path):
    runs = [write_run(tmp_path / name) for name in "ab"]
    result = json.loads((runs[1] / "result.json").read_text())
    error = {"name": "squared_error", "higher_is_better": False, "percent": False}
    (runs[1] / "result.json").write_text(json.dumps(result | {"metric": error, "test_squared_error": 7.25}))
    shown = texts(report(runs))
    assert "test score" in shown
    assert "7.25 squared error" in shown
    assert "1 of 1 runs are on the Pareto front" in shown


def test_a_run_that_was_killed_early_does_not_name_the_metric_of_the_others(tmp_path):
    """It says none, and an accuracy would be the guess."""
    early, *others = [write_run(tmp_path / name, seed=seed, accuracy=0.25) for seed, name in enumerate("abc")]
    error = {"name": "squared_error", "higher_is_better": False, "percent": False}
    for other in others:
        result = json.loads((other / "result.json").read_text())
        (other / "result.json").write_text(json.dumps(result | {"metric": error, "test_squared_error": 0.25}))
    (early / "result.json").unlink()
    (early / "metrics.jsonl").write_text("")
    shown = texts(report([early, *others]))
    assert "± 0 test squared error, 2 runs" in shown
    assert "1 of 2 runs are on the Pareto front" in shown
    assert "accuracy" not in shown
    warming_up = RunFiles(early, lines={"search": [{"stage": "search", "epoch": 0, "weights/mine": 1}]})
    assert warming_up.metric[0] == "mine"


def test_means_are_of_all_runs_that_reached_an_epoch(tmp_path):
    """However many lines of each are kept."""
    line = '{"stage": "search", "epoch": %d, "arch/loss": %d}\n'
    for epochs, loss in ((120, 1), (110, 5), (100, 9)):
        (tmp_path / str(loss)).mkdir()
        (tmp_path / str(loss) / "metrics.jsonl").write_text("".join(line % (one, loss) for one in range(epochs)))
    runs = [read_run(tmp_path / loss, points=100) for loss in "159"]
    *_, mean = overlaid(Groups(runs), "search", "arch/loss")
    assert dict.fromkeys(value for epoch, value in mean.points if epoch <= 100) == {5: None}
    assert len(mean.points) == 55
    assert mean.points[-1] == (109, 3)


def test_a_choice_that_a_run_does_not_have_is_not_dropped_there(tmp_path):
    runs = [write_run(tmp_path / name) for name in "abc"]
    for other in runs[1:]:
        genotype = json.loads((other / "genotype.json").read_text())
        (other / "genotype.json").write_text(json.dumps(genotype | {"choices": {"normal/0-2": None}}))
    shown = texts(report(runs))
    assert "normal/0-2\n2 of 3\n-\ndropped\ndropped" in shown
    assert "cell/1-2\n1 of 3\nskip_connect\n-\n-" in shown


def test_of_a_hundred_runs(tmp_path):
    runs = [write_run(tmp_path / str(index), epochs=2, seed=index, sampler=f"s{index}") for index in range(4)]
    runs += [shutil.copytree(runs[index % 4], tmp_path / str(index)) for index in range(4, 100)]
    page = report([tmp_path])
    assert len(page) < 2_000_000
    assert texts(page).count("class 0") == 0
    assert "100 finished" in texts(page)
    assert len(runs) == 100


# -- parts


def test_the_pareto_front():
    assert pareto([(1, 1), (2, 3), (3, 2), (4, 4), (1, 0)]) == [(1, 1), (2, 3), (4, 4)]
    assert pareto([(1, 5), (2, 3), (3, 4)], higher_is_better=False) == [(1, 5), (2, 3)]


def test_thinning_keeps_peaks():
    points = [(float(x), 100.0 if x == 7777 else 0.0) for x in range(20_000)]
    found = thinned(points)
    assert len(found) <= 402
    assert (7777.0, 100.0) in found
    assert found == sorted(found)


def test_a_rounded_number_has_the_letter_of_its_size():
    assert [compact(value) for value in (999, 999.6, 999_499, 999_750, 999_999_999, 2e12)] == [
        "999", "1 k", "999 k", "1 M", "1 G", "2 T",
    ]  # fmt: skip


def test_round_numbers_on_an_axis():
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(3.0, 3.0) == [3.0]
    assert heat_png([[0.0, float("nan"), 1.0]]).startswith("data:image/png;base64,iVBOR")


def test_the_command_imports_neither_torch_nor_hydra():
    code = "import nas.cli.report_runs, sys; print({'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("given", [["out=x.html"], ["", "out=x.html"]])
def test_no_run_is_no_report(given):
    with pytest.raises(
        OutputError, match=r"no run is given, expected the directory of one or more; give e.g. runs/my_run"
    ):
        run(given)
