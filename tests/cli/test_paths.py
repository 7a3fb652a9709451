from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nas.cli import output
from nas.cli.paths import anchored, read
from nas.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("checkpoint=~/t/x.pt", "checkpoint=/home/me/t/x.pt"),
        ('resume="~/a b"', 'resume="/home/me/a b"'),
        ("hydra.run.dir='~/r'", "hydra.run.dir=/home/me/r"),
        ("hydra.sweep.dir=~", "hydra.sweep.dir=/home/me"),
        ("genotype=~/a,~/b", "genotype=/home/me/a,/home/me/b"),
        ("x=[~/a,'~/b c']", 'x=[/home/me/a,"/home/me/b c"]'),
        ("--config-dir=~/c", "--config-dir=/home/me/c"),
        ("genotype='|none~0|+|none~0|none~1|'", "genotype='|none~0|+|none~0|none~1|'"),
        ("~retrain.policy", "~retrain.policy"),
        ("data.root=a~b", "data.root=a~b"),
        ("""resume='"a b, c"'""", 'resume="a b, c"'),  # as a message prints it, where no shell has read it
    ],
)
def test_home(given: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read([given]) == [expected]


def test_settings_of_the_data_of_a_checkpoint() -> None:
    assert read(["checkpoint=c", "data.root=x", "batch_size=4"]) == ["checkpoint=c", "++data.root=x", "batch_size=4"]
    assert read(["resume=r", "data.root=x"])[1] == "++data.root=x"
    assert read(["resume=r", "space.weights=w.pt"])[1] == "++space.weights=w.pt"
    assert read(["resume=r", "teacher.share=0.1"])[1] == "++teacher.share=0.1"
    assert read(["resume=r", "space.channels=4"])[1] == "space.channels=4"
    assert read(["checkpoint=c", "data=image_folder", "data.root=x"])[2] == "data.root=x"
    assert read(["data.root=x"]) == ["data.root=x"]


def test_paths_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    Path("g.json").touch()
    config = anchored(
        OmegaConf.create(
            {
                "data": {"root": "pets"},
                "benchmark": {"table": "~/a.csv"},
                "regulariser": {"latency": {"table": "l.json"}, "entropy": {"weight": 1}},
                "genotype": "g.json",
            }
        )
    )
    assert config.data.root == str(tmp_path / "pets")
    assert config.benchmark.table == "/home/me/a.csv"
    assert config.regulariser.latency.table == str(tmp_path / "l.json")
    assert config.genotype == str(tmp_path / "g.json")
    kept = {"data": {"root": "s3://bucket"}, "benchmark": None, "genotype": "DARTS_V2"}
    assert OmegaConf.to_container(anchored(OmegaConf.create(kept))) == kept


@pytest.mark.parametrize(
    "given",
    ["hydra.sweep.dir=", "hydra.run.dir=''", "resume=", "++data.root=", "images=", 'regulariser.latency.table=""'],
)
def test_an_empty_path_is_not_the_working_directory(given: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{given.strip('+').partition('=')[0]} is empty, expected a path; set .*=\.\.\."
    ):
        read(["seed=1", given])


def test_an_empty_variable_of_the_environment_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_RUNS", "")
    assert output.base([]) == Path("runs")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("NAS_RUNS", "~/found")
    assert output.base([]) == Path("/home/me/found")
    with pytest.raises(ConfigError, match=r"data\.root is empty"):
        anchored(OmegaConf.create({"data": {"root": ""}}))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("seed=1 -m lr=cosine", "-m seed=1 lr=cosine"),
        ("seed=1 --config-dir mine=2 --cfg job", "--config-dir mine=2 --cfg job seed=1"),
        ("a=1 --info b=2", "--info a=1 b=2"),
    ],
)
def test_options_may_come_after_settings(given: str, expected: str) -> None:
    assert read(given.split()) == expected.split()
