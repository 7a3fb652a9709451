"""Trackers beside TensorBoard, each with its own client where that is installed, without any network."""

import functools
import json
import sqlite3

import pytest

from nas.errors import ConfigError, OutputError
from nas.storage import MLflow, Trackio, WandB
from nas.storage.forwarded import Adapted, check_installed

LINE = {"weights/loss": 1.5, "arch/loss": float("nan"), "probability/cell/0-1/a": 0.75, "probability/cell/0-1/b": 0.25}


def drive(tracker):
    """A search of three epochs, whose second derives something else, and a retraining."""
    with tracker:
        tracker.describe(texts={"settings": "a: 1"}, settings={"seed": 3, "sampler": "gdas"}, scores=["test/accuracy"])
        for epoch, name in enumerate("abb"):
            tracker.derived({"cell/0-1": name})
            tracker.log("search", epoch, LINE)
        tracker.log("retrain", 0, {"weights/loss": 0.5})
        tracker.finish({"test/accuracy": 0.75}, texts={"genotype": "{}"})


class Least:
    """All that a tracker of a user's own needs."""

    def __init__(self):
        self.lines = []

    def log(self, stage, epoch, metrics):
        self.lines.append((stage, epoch, dict(metrics)))


class Full(Least):
    def __init__(self):
        super().__init__()
        self.told = {}

    def describe(self, *, texts, settings, scores):
        self.told["describe"] = (texts, settings, scores)

    def derived(self, choices):
        self.told.setdefault("derived", []).append(choices)

    def finish(self, scores, *, texts):
        self.told["finish"] = (scores, texts)

    def picture(self, tag, png, epoch):
        assert png.startswith(b"\x89PNG")
        self.told.setdefault("pictures", []).append((tag, epoch))

    def close(self):
        self.told["close"] = True


def test_a_tracker_of_ones_own_needs_log_alone(tmp_path):
    least = Least()
    drive(Adapted(least, directory=tmp_path))
    assert [(stage, epoch) for stage, epoch, _ in least.lines] == [("search", n) for n in range(3)] + [("retrain", 0)]
    assert least.lines[0][2] == LINE | {"arch/loss": pytest.approx(float("nan"), nan_ok=True)}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    with pytest.raises(ConfigError, match="a dict without a method log"):
        Adapted({}, directory=tmp_path)


def test_a_tracker_of_ones_own_gets_settings_genotype_scores_and_pictures(tmp_path):
    full = Full()
    drive(Adapted(full, directory=tmp_path))
    assert full.told["describe"] == ({"settings": "a: 1"}, {"seed": 3, "sampler": "gdas"}, ["test/accuracy"])
    assert full.told["finish"] == ({"test/accuracy": 0.75}, {"genotype": "{}"})
    assert full.told["derived"] == [{"cell/0-1": "a"}, {"cell/0-1": "b"}, {"cell/0-1": "b"}]
    derived, leading = ([epoch for tag, epoch in full.told["pictures"] if tag == f"pictures/{name}"]
                        for name in ("derived", "leading"))  # fmt: skip
    assert (derived, leading) == ([1, 2], [1, 2, 3])
    assert full.told["close"]


@pytest.mark.parametrize("kind", [WandB, MLflow, Trackio])
def test_a_client_that_is_not_installed_is_named(kind, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for given in (kind, functools.partial(kind)):
        with pytest.raises(ConfigError, match=rf"needs {kind.package}.*pip install 'gumbel-nas\[{kind.package}\]'"):
            check_installed(given)
    check_installed(functools.partial(dict))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, request):
    if "client" not in request.node.name:
        return
    import socket

    real = socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a connection to {address}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_client_wandb(tmp_path):
    pytest.importorskip("wandb", reason="needs wandb, of the extra of that name")
    for _ in range(2):  # the second as a resumed run
        drive(WandB(directory=tmp_path, mode="offline"))
    (one, *_) = tmp_path.glob("wandb/offline-run-*")
    assert one.name.endswith((tmp_path / ".tracker_id").read_text())
    (log,) = one.glob("*.wandb")
    content = log.read_bytes()
    for expected in (b"search/weights/loss", b"retrain/weights/loss", b"test/accuracy", b"gdas", b"pictures/derived"):
        assert expected in content
    assert len(list(one.glob("files/media/images/pictures/*.png"))) == 5


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_client_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs mlflow, of the extra of that name")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    drive(MLflow(directory=tmp_path))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    run = client.get_run((tmp_path / ".tracker_id").read_text())
    assert run.data.metrics["search/weights/loss"] == 1.5
    assert run.data.metrics["test/accuracy"] == 0.75
    assert run.data.params == {"seed": "3", "sampler": "gdas"}
    assert [one.step for one in client.get_metric_history(run.info.run_id, "arch/cell/0-1")] == [1, 2, 3]
    assert len(client.list_artifacts(run.info.run_id, "pictures")) == 5
    resumed = MLflow(directory=tmp_path)
    assert resumed._run == run.info.run_id
    resumed.describe(texts={}, settings={"seed": 3, "sampler": "uniform"}, scores=[])
    found = client.get_run(run.info.run_id).data
    assert found.params == run.data.params
    assert found.tags["resumed with sampler"] == "uniform"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_client_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="needs trackio, of the extra of that name")
    (tmp_path / "run").mkdir()
    drive(Trackio(directory=tmp_path / "run"))
    (database,) = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(database) as connection:
        rows = [json.loads(row[0]) for row in connection.execute("select metrics from metrics")]
    assert any(row.get("search/weights/loss") == 1.5 for row in rows)
    assert any(row.get("test/accuracy") == 0.75 for row in rows)


@pytest.mark.parametrize(("kind", "name"), [(MLflow, "mlruns"), (WandB, "wandb")])
def test_a_link_in_a_run_from_elsewhere_is_not_written_through(kind, name, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path)
    with pytest.raises(OutputError, match="is a link"):
        kind(directory=tmp_path / "run")
