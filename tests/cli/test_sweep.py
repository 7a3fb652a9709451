"""Sweeps: their jobs by name, what the same sweep again does, and what a sweeper is given."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bits import of_search
from cli.conftest import TINY, Outcome
from omegaconf import OmegaConf
from torch import nn

from nas.cli import sweep, sweep_table, task
from nas.cli.stages.objective import Objective
from nas.data.spec import DataSpec
from nas.data.split import TensorSplit
from nas.data.synthetic import Synthetic
from nas.errors import ConfigError, DivergenceError
from nas.methods.first_order import FirstOrder
from nas.storage import lock
from nas.training.evaluate import Score
from nas.training.task import Metric

Nas = Callable[..., Outcome]
SHORT = (*TINY, "search.epochs=1", "retrain.epochs=1", "tracker=jsonl")
OPTUNA = (
    "-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=1",
    "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "hydra.sweeper.direction=maximize",
)  # fmt: skip


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_failed_job_is_named_and_the_same_sweep_again_does_what_is_left(nas: Nas) -> None:
    given = ("-m", *SHORT, "search.batch_size=1000,8", "hydra.sweep.dir=sweep")
    ended = nas("search", *given)
    assert ended.code == 2
    assert "error: job 0 (search.batch_size=1000): search.batch_size 1000 is larger" in ended.err
    assert {path.name for path in Path("sweep").iterdir() if path.is_dir()} == {
        "0_search.batch_size-1000", "1_search.batch_size-8",
    }  # fmt: skip
    done = Path("sweep/1_search.batch_size-8").absolute()
    # Its own command, without the sweep.
    command_of_job = read(done / "manifest.json")["command"]
    assert command_of_job[0] == "nas-search"
    assert {"experiment=quickstart", "search.epochs=1", "search.batch_size=8"} <= set(command_of_job)
    assert command_of_job[-1] == f"hydra.run.dir={done}"
    assert not {"-m", "hydra.sweep.dir=sweep", "search.batch_size=1000"} & set(command_of_job)
    assert [(job["number"], job["status"]) for job in read(Path("sweep/sweep.json"))["jobs"]] == [
        (1, "finished"), (0, "failed"),
    ]  # fmt: skip
    times = {path: path.stat().st_mtime_ns for path in done.iterdir() if path.name != sweep.RECORD}
    again = nas("search", *given)
    assert again.code == 2
    assert "job 1 (search.batch_size=8) has finished before" in again.out
    assert "job 0 (search.batch_size=1000) has failed before and is not repeated" in again.err
    other = nas("search", *given, "retry_failed=true", "search.init_std=0.5")
    assert "error: job 0 (search.batch_size=1000): search.batch_size 1000 is larger" in other.err
    assert "holds a run with another configuration: search.init_std=0.5 (was 0.001)" in other.err
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert all("error" in job for job in read(Path("sweep/sweep.json"))["jobs"])


def test_what_has_no_files_has_not_finished_and_what_is_corrected_is_repeated(nas: Nas) -> None:
    subdir = "hydra.sweep.subdir='${hydra.job.num}'"
    given = ("-m", "genotype=DARTS_V2", "theme=dark,light", "hydra.sweep.dir=sweep", subdir)
    assert nas("draw", *given, "out=cell.gif").err.count("out must end in .svg or .png") == 2
    assert nas("draw", *given, "out=cell.gif").err.count("is not repeated") == 2
    assert nas("draw", *given, "out=cell.svg").code == 0

    def changed(job: int, **facts: Any) -> None:
        path = Path("sweep", str(job), sweep.RECORD)
        path.write_text(json.dumps(read(path) | facts))

    Path("cell.svg").unlink()
    changed(0, left=True)  # as a job leaves it that writes into its own directory
    again = nas("draw", *given, "out=cell.svg")
    assert "job 0 (theme=dark) has finished before" not in again.out
    assert "job 1 (theme=light) has finished before" in again.out
    assert Path("cell.svg").is_file()
    changed(1, status="failed", error="no memory")
    fewer = nas("draw", *given, "out=cell.svg", "theme=dark")
    assert (fewer.code, "failed: no memory, of an earlier command" in fewer.out) == (0, True)
    assert [job.get("of_earlier_command", False) for job in read(Path("sweep/sweep.json"))["jobs"]] == [False, True]


@pytest.mark.parametrize("mistake", ["++nothing=1", "resume=auto"])
def test_a_mistaken_command_leaves_jobs_as_they_are(mistake: str, nas: Nas) -> None:
    given = ("-m", *SHORT, "hydra.sweep.dir=sweep")
    place = Path("sweep/0", sweep.RECORD)
    place.parent.mkdir(parents=True)
    Path("sweep/0/manifest.json").touch()
    for status in ("running", "finished"):  # as a killed job leaves them
        place.write_text(json.dumps({"number": 0, "status": status, "objective": 0.5}))
        assert nas("search", *given, mistake).code == 2
        assert {**read(place), "refused": ""}.items() >= {"status": status, "objective": 0.5, "refused": ""}.items()
        assert "refused" in read(place)


@pytest.mark.parametrize("words", [("seed=0,x",), ("data=", "hydra.sweep.dir=sweep")])
def test_a_mistake_leaves_no_directory_of_a_sweep(words: tuple[str, ...], nas: Nas, tmp_path: Path) -> None:
    assert nas("search", "-m", *SHORT, *words).code == 2
    assert not list(tmp_path.iterdir())


def test_sweeps_have_directories_of_their_own(nas: Nas) -> None:
    for _ in range(2):
        assert nas("draw", "-m", "genotype=DARTS_V2", "out=cell.svg", "theme=dark,light").code == 0
    sweeps = sorted(Path("runs").iterdir())
    assert len(sweeps) == 2
    assert all({path.name for path in one.iterdir()} >= {"0_theme-dark", "1_theme-light"} for one in sweeps)


def test_the_table_is_best_first(tmp_path: Path) -> None:
    for number, (status, value) in enumerate([("finished", 0.3), ("running", 0.9), ("finished", 0.5)]):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / sweep.RECORD).write_text(json.dumps({"number": number, "settings": [], "status": status}))
        metric = {"name": "accuracy", "higher_is_better": True}
        (directory / "result.json").write_text(json.dumps({"metric": metric, "test_accuracy": value}))
    assert [(row.number, row.value) for row in sweep_table.rows(tmp_path)] == [(2, 0.5), (0, 0.3), (1, None)]
    (tmp_path / "0" / "result.json").write_text(json.dumps({"metric": metric, "objective": {"macs": 7}}))
    assert sweep_table.standing(tmp_path / "0") == ("macs", 7.0, False)


def test_the_table_ranks_what_means_the_same_and_leaves_other_sweeps_out(tmp_path: Path) -> None:
    found = {"0": {"test_accuracy": 0.9}, "1": {"validation_accuracy": 0.3}, "2": {"validation_accuracy": 0.5}}
    for number, (place, scores) in enumerate({**found, "old/7": {"validation_accuracy": 0.8}}.items()):
        (tmp_path / place).mkdir(parents=True)
        record = {"number": number, "settings": [], "status": "finished"}
        (tmp_path / place / sweep.RECORD).write_text(json.dumps(record))
        metric = {"name": "accuracy", "higher_is_better": True}
        (tmp_path / place / "result.json").write_text(json.dumps({"metric": metric, **scores}))
    (tmp_path / "old" / "sweep.json").write_text("{}")
    assert [row.number for row in sweep_table.rows(tmp_path)] == [2, 1, 0]
    assert sweep_table.rows(tmp_path)[2].what == "test accuracy"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"number": 0, "settings": 5}', "{"])
def test_a_damaged_record_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / sweep.RECORD).write_text(text)
    assert sweep_table.rows(tmp_path) == []


def test_a_dry_run_is_no_job_that_has_finished(nas: Nas) -> None:
    optimisers = ("optim@weight_optim=sgd,adam", "optim@arch_optim=adam")  # one group, of which one place varies
    ended = nas("search", "-m", *SHORT, *optimisers, "dry_run=true", "hydra.sweep.dir=sweep")
    assert (ended.code, list(Path().iterdir())) == (0, [])
    assert [f"job {number} (optim@weight_optim={of})" in ended.out for number, of in enumerate(("sgd", "adam"))] == [
        True
    ] * 2


# joblib with one process runs the jobs in the launching process.
@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1")])
def test_a_signal_names_the_sweep(launcher: tuple[str, ...], nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
    taken, step = [], FirstOrder.weight_step

    def third(*arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(FirstOrder, "weight_step", third)
    ended = nas("search", "-m", *SHORT, *launcher, "hydra.sweep.dir=sweep")
    assert ended.code == 128 + signal.SIGTERM
    told = f"the same command, of a sweep with hydra.sweep.dir={Path('sweep').absolute()}, goes on"
    assert ended.err == f"error: stopped by SIGTERM, all that was done is saved; {told}\n"
    monkeypatch.setattr(FirstOrder, "weight_step", step)
    assert nas("search", "-m", *SHORT, *launcher, "hydra.sweep.dir=sweep").code == 0


@pytest.mark.parametrize("place", ["file", "/proc/nothing"])
def test_a_directory_that_cannot_be_one_is_one_line(place: str, nas: Nas) -> None:
    Path("file").touch()
    ended = nas("search", "-m", *SHORT, f"hydra.sweep.dir={place}")
    assert ended.code == 2
    assert re.fullmatch(
        r"error: the sweep could not begin: \S+ cannot be written \([A-Za-z ]+\); set hydra\.sweep\.dir.*\n", ended.err
    )


def test_a_mistaken_command_leaves_a_killed_job_to_the_right_one(nas: Nas) -> None:
    given = ("-m", *SHORT, "hydra.sweep.dir=sweep")
    assert nas("search", *given).code == 0
    job = next(Path("sweep").glob("0*"))
    for name in (sweep.RECORD, "manifest.json"):  # as a killed job leaves them
        (job / name).write_text(json.dumps(read(job / name) | {"status": "running"}))
    wrong = nas("search", *given, "search.init_std=0.5")
    assert wrong.code == 2
    assert "holds a run with another configuration: search.init_std=0.5 (was 0.001)" in wrong.err
    assert (read(job / sweep.RECORD)["status"], "refused" in read(job / sweep.RECORD)) == ("running", True)
    assert nas("search", *given).code == 0
    assert (read(job / sweep.RECORD)["status"], "refused" in read(job / sweep.RECORD)) == ("finished", False)


@pytest.fixture
def untouchable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The test split of made-up data cannot be read before the objective is there. Returns what happened, in order."""
    happened: list[str] = []
    load, measured = Synthetic.load, Objective.measured

    class Forbidden(TensorSplit):
        def batches(self, *arguments: Any, **options: Any) -> Any:
            assert happened[-1] != "job", "the test split was read before the objective was there"
            happened.append("test")
            return super().batches(*arguments, **options)

        def contents(self) -> Any:
            raise AssertionError("the test split was read")

    def guarded(self: Synthetic) -> Any:
        data = load(self)
        data.test.__class__ = Forbidden
        happened.append("job")
        return data

    def noted(self: Objective, *arguments: Any) -> dict[str, float]:
        found = measured(self, *arguments)
        happened.append("objective")
        return found

    monkeypatch.setattr(Synthetic, "load", guarded)
    monkeypatch.setattr(Objective, "measured", noted)
    return happened


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Optuna
def test_an_optuna_sweep_never_sees_the_test_split(nas: Nas, untouchable: list[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs hydra-optuna-sweeper")
    ended = nas("run", *OPTUNA, *SHORT, "retrain.optim.lr=interval(0.01,0.1)", "hydra.sweep.dir=sweep")
    assert ended.code == 0, ended.err
    assert [kind for kind, _ in itertools.groupby(untouchable)] == ["job", "objective", "test"] * 2
    results = [read(path) for path in Path("sweep").glob("*/result.json")]
    commands = [read(path)["command"] for path in Path("sweep").glob("*/manifest.json")]
    assert all({"objective=score", "retrain.validation=0.1"} <= {*command} for command in commands)
    assert all(result["objective"] == {"score": result["validation_accuracy"]} for result in results)
    assert all(result["validation_examples"] == 5 for result in results)  # 0.1 of 48
    assert all("test_accuracy" in result for result in results)
    best = OmegaConf.load("sweep/optimization_results.yaml")
    assert best.best_value == max(result["objective"]["score"] for result in results)


def test_held_out_examples_are_not_learnt(nas: Nas) -> None:
    cell = "genotype='|skip_connect~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|skip_connect~2|'"
    ended = nas(
        "retrain", *SHORT, cell, "retrain.validation=0.25", "objective=[score,macs,parameters]", "hydra.run.dir=out"
    )
    assert ended.code == 0, ended.err
    result = read(Path("out/result.json"))
    assert result["validation_examples"] == 12
    assert read(Path("out/manifest.json"))["retrain_epoch"]["examples"] == 36
    assert result["objective"] == {
        "score": result["validation_accuracy"],
        "macs": result["macs"],
        "parameters": result["parameters"],
    }


ACCURACY = Metric("accuracy", higher_is_better=True, percent=True)


@pytest.mark.parametrize(
    ("objective", "validation", "message"),
    [
        ("latncy", 0.1, "objective has latncy, expected some of score, loss, macs, parameters, latency or accuracy"),
        ([], 0.1, "objective has nothing"),
    ],
)
def test_an_objective_that_is_none(objective: Any, validation: float, message: str) -> None:
    cfg = OmegaConf.create({"objective": objective, "retrain": {"validation": validation}})
    with pytest.raises(ConfigError, match=message):
        Objective.from_config(cfg, ACCURACY)


def test_the_sweeper_looks_for_the_better_end() -> None:
    objective = Objective(("score", "macs"), True, ACCURACY)
    objective.check_directions(["maximize", "minimize"])
    assert objective.value({"macs": 3.0, "score": 0.5}) == [0.5, 3.0]
    with pytest.raises(DivergenceError, match="the objective loss is inf, expected a number"):
        Objective(("loss",), False, ACCURACY).measured(
            nn.Identity, DataSpec(name="mine", input_shapes=((1,),)), Score(0.1, float("inf"), 8)
        )
    for wrong in (["minimize", "minimize"], ["maximize"]):
        with pytest.raises(ConfigError, match=r"set hydra.sweeper.direction=\[maximize,minimize\]"):
            objective.check_directions(wrong)


def test_an_objective_of_a_retraining_needs_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "optimises", lambda: True)
    cfg = OmegaConf.create({"objective": None, "retrain": {"validation": None}})
    sweep.prepare(cfg, "nas-run")
    assert (cfg.objective, cfg.retrain.validation) == ("score", 0.1)
    sizes = OmegaConf.create({"objective": ["macs"], "retrain": {"validation": None}})
    sweep.prepare(sizes, "nas-run")
    assert sizes.retrain.validation is None
    cfg = OmegaConf.create({"objective": None, "retrain": {"validation": 0.0}})
    with pytest.raises(ConfigError, match=r"set retrain.validation=0.1"):
        sweep.prepare(cfg, "nas-run")


def test_resume_auto(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.training.progress_bar import Progress

    given = ("search", *TINY, "tracker=jsonl", "resume=auto")
    assert nas(*given, "hydra.run.dir=whole").code == 0

    def interrupt(self: Progress, epoch: int, fraction: float) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", interrupt)
        assert nas(*given, "hydra.run.dir=cut").code == 130
    assert nas(*given, "hydra.run.dir=cut").code == 0
    assert len(read(Path("cut/manifest.json"))["resumed"]) == 1
    assert of_search(Path("cut")) == of_search(Path("whole"))
    assert "has finished" in nas(*given, "hydra.run.dir=cut").out


@pytest.mark.long
@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")])
def test_a_sweep_that_is_killed_and_started_again_gives_the_same_bits(
    launcher: tuple[str, ...], tmp_path: Path
) -> None:
    settings = [*TINY, "tracker=jsonl", "search.epochs=12", "seed=0,1,2", *launcher]

    def start(name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "nas.cli.search", "-m", *settings, f"hydra.sweep.dir={tmp_path / name}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    assert start("whole").wait(300) == 0
    killed = start("killed")
    deadline = time.monotonic() + 200
    while not list((tmp_path / "killed").glob("1_*/search/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = list((tmp_path / "killed").glob("*/result.json"))
    assert len(before) < 3
    assert start("killed").wait(300) == 0
    for seed in range(3):
        killed_one, whole_one = (of_search(tmp_path / name / f"{seed}_seed-{seed}") for name in ("killed", "whole"))
        assert killed_one == whole_one
    shutil.rmtree(tmp_path / "whole")


def test_a_job_that_another_process_runs_is_left_alone(tmp_path: Path) -> None:
    assert not task.is_held(tmp_path)
    descriptor = lock.take(tmp_path)
    assert descriptor is not None
    assert task.is_held(tmp_path)
    os.close(descriptor)


SLURM = Path(__file__).parents[2] / "scripts" / "slurm_cluster"


RATES = "weight_optim.lr=0.1,1e20,0.05"
ENGINES = {
    "basic": (RATES,),
    "joblib": (RATES, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "ray": (RATES, "hydra/launcher=ray_local"),
    "ray by address": (RATES, "hydra/launcher=ray_cluster"),
    "slurm": (RATES, "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"),
    "optuna": (
        "weight_optim.lr=choice(0.1,1e20,0.05)", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid",
        "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "hydra.sweeper.direction=maximize",
    ),
}  # fmt: skip
NEEDED = {
    "joblib": "hydra_joblib_launcher",
    "ray": "hydra_ray_launcher",
    "ray by address": "hydra_ray_launcher",
    "optuna": "hydra_optuna_sweeper",
}


@contextmanager
def ray_running(*, wanted: bool) -> Iterator[None]:
    """A context in which a Ray runs on this machine, if it is wanted."""

    def ray(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *arguments], check=True, capture_output=True)

    if not wanted:
        yield
        return
    ray("start", "--head", "--port=6391", "--num-cpus=2", "--include-dashboard=false",
        "--object-store-memory=100000000", "--disable-usage-stats")  # fmt: skip
    try:
        yield
    finally:
        ray("stop", "--force")


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_a_failed_job_ends_no_sweep(engine: str, tmp_path: Path) -> None:
    """With Slurm: on the cluster that scripts/slurm_cluster has started."""
    if engine == "slurm":
        if "SLURM_CONF" not in os.environ or shutil.which("sbatch") is None:
            pytest.skip(f"needs a Slurm cluster: {SLURM} start, and the environment that it names")
        pytest.importorskip("submitit", reason="needs hydra-submitit-launcher")
    elif engine in NEEDED:
        pytest.importorskip(f"hydra_plugins.{NEEDED[engine]}", reason=f"needs {NEEDED[engine]}")
    settings = [*ENGINES[engine], *SHORT, f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    with ray_running(wanted=engine == "ray by address"):
        ended = subprocess.run(
            [sys.executable, "-m", "nas.cli.search", "-m", *settings],
            cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}, capture_output=True, text=True,
            timeout=500, check=False,
        )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    jobs = read(tmp_path / "sweep" / "sweep.json")["jobs"]
    statuses = {job["number"]: job["status"] for job in jobs}
    if engine == "optuna":  # in an order of its own
        assert sorted(statuses.values()) == ["failed", "finished", "finished"]
    else:
        assert statuses == {0: "finished", 1: "failed", 2: "finished"}
    failed = next(job for job in jobs if job["status"] == "failed")
    assert "the loss is nan" in failed["error"]
    # In the table at the end; what a job itself prints goes to the cluster's files, with Slurm.
    assert re.search(rf"│ {failed['number']} +│ weight_optim\.lr=1e\+?20 +│ +│ failed: .*the loss is nan", ended.stdout)
