"""The places to which a run writes its files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cli.conftest import TINY, Outcome

from nas.cli import output

Nas = Callable[..., Outcome]


def test_runs_of_the_same_moment_get_directories_of_their_own(nas: Nas, tmp_path: Path) -> None:
    """With Hydra's own files in them, which Hydra writes before anything else happens."""
    small = (*TINY, "search.epochs=1", "tracker=jsonl", "hydra.run.dir='made/${now:%Y}'")
    for number in (1, 2):
        outcome = nas("search", *small, "hydra.output_subdir=.hydra", "hydra/job_logging=default", f"seed={number}")
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.endswith(f"Everything is in {sorted((tmp_path / 'made').iterdir())[-1]}\n")
    first, second = sorted((tmp_path / "made").iterdir())
    assert second.name == f"{first.name}_2"
    for number, directory in ((1, first), (2, second)):
        assert f"seed: {number}\n" in (directory / "config.yaml").read_text()
        assert not (directory / ".claimed").exists()


def test_a_mistake_leaves_a_directory_of_the_users(nas: Nas, tmp_path: Path) -> None:
    (tmp_path / "mine" / "empty").mkdir(parents=True)
    assert nas("search", *TINY, "search.epochs=0", "hydra.run.dir=mine/empty").code == 2
    assert nas("search", *TINY, "search.epochs=0", "hydra.run.dir=mine/new").code == 2
    assert nas("search", *TINY, "search.epochs=0").code == 2
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "mine", tmp_path / "mine" / "empty"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "runs"),
        (("hydra.run.dir=a", "hydra.run.dir='b/c'"), "b/c"),
        (("hydra.run.dir=a/${now:%Y}/c",), "a"),
        (("hydra.sweep.dir=x",), "x"),
    ],
)
def test_what_a_command_line_says_of_the_directory(
    arguments: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NAS_RUNS", raising=False)
    assert output.base(arguments) == Path(expected)


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        (["resume=run"], ["hydra.run.dir='run'"]),
        (["resume=run", "hydra.run.dir=x"], []),
        (["resume=nothing"], []),
        (["seed=1"], []),
    ],
)
def test_what_is_resumed_is_resumed_in_place(arguments: list[str], added: list[str], nas: Nas) -> None:
    Path("run").mkdir()
    Path("run/manifest.json").touch()
    given = ["nas-run", *arguments]
    output.resume_in_place(given)
    assert given == ["nas-run", *arguments, *added]
