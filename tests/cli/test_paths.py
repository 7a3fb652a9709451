from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nas.cli.paths import anchored, read


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
