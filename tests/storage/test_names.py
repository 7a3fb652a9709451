import functools
import os
import threading
from pathlib import Path

import pytest

from nas.errors import OutputError
from nas.report.run_files import RunFiles
from nas.runtime.runtime import Runtime
from nas.storage import atomic, lock, names
from nas.storage.run_directory import RunDirectory, check_new, read_manifest


def make(directory, *entries):
    for entry in entries:
        path = directory / entry
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if entry.endswith("/") else path.touch()


@pytest.mark.parametrize(
    "entries",
    [
        (".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"),
        ("hydra_files/config.yaml", "hydra_files/hydra.yaml", "hydra_files/overrides.yaml"),
        ("config.yaml", "hydra.yaml", "overrides.yaml"),
        ("nas-search.log",),
        ("log.txt", "log", "slurm-17.out", "job.err", "run.log.1"),
        ("lost+found/",),
        (".nfs0001", ".DS_Store"),
        ("events.out.tfevents.1.host", "wandb/run"),
    ],
)
def test_what_is_no_run_is_in_nobodys_way(entries, tmp_path):
    make(tmp_path, *entries)
    check_new(tmp_path)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        (("thesis.txt",), "thesis.txt"),
        (("catalogue", "prologue.md"), "catalogue, prologue.md"),
        (("search/checkpoint.pt", "x.log"), "search"),
        (("config.yaml",), "config.yaml"),
        (("a", "b", "c", "d", "e"), "a, b, c and 2 more"),
    ],
)
def test_what_is_in_the_way_is_named(entries, named, tmp_path):
    make(tmp_path, *entries)
    with pytest.raises(OutputError, match=rf"is not empty, .*; set hydra.run.dir to another, or move {named} away"):
        check_new(tmp_path, config="seed: 0\n")


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is a file, expected a new directory"):
        names.check_empty(tmp_path / "file")


def test_a_run_that_was_killed_before_its_manifest_can_be_started_again(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    check_new(tmp_path, config="seed: 0\n")
    with pytest.raises(OutputError, match=r"move config\.yaml away"):
        check_new(tmp_path, config="seed: 1\n")


def test_the_time_of_earlier_processes_outlives_one_that_was_killed(tmp_path):
    made = functools.partial(RunDirectory, tmp_path, config="", command=[], seed=0, runtime=Runtime(device="cpu"))
    with made(lock=False):
        pass
    atomic.write_json(tmp_path / "manifest.json", read_manifest(tmp_path) | {"wall_seconds": 3600.0})
    made(resume=True, lock=False)  # and never ended
    with made(resume=True, lock=False):
        assert RunFiles(tmp_path, manifest=read_manifest(tmp_path)).seconds is None  # while it runs
    assert RunFiles(tmp_path, manifest=read_manifest(tmp_path)).seconds >= 3600


def test_of_many_at_once_each_gets_a_directory_of_its_own(tmp_path):
    got = []
    threads = [
        threading.Thread(target=lambda: got.append(names.claimed(tmp_path / "runs" / "now").name)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["now", *(f"now_{number}" for number in range(2, 9))]


def test_a_directory_with_a_run_is_not_claimed(tmp_path):
    make(tmp_path, "now/manifest.json")
    assert names.claimed(tmp_path / "now") == tmp_path / "now_2"
    assert [path.name for path in (tmp_path / "now").iterdir()] == ["manifest.json"]


def test_a_claim_of_another_process_is_not_ended(tmp_path):
    names.claimed(tmp_path)
    (tmp_path / names.CLAIM).write_text("1 on another machine")
    names.release(tmp_path)
    assert (tmp_path / names.CLAIM).exists()


def test_an_empty_directory_goes_with_those_above_that_were_not_there(tmp_path):
    absent = names.absent(tmp_path / "runs" / "many")
    (tmp_path / "runs" / "many" / "now").mkdir(parents=True)
    names.remove_if_empty(tmp_path / "runs" / "many" / "now", above=absent)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("by", ["a file", "a lock"])
def test_a_directory_that_another_holds_is_left(by, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "TRIES", 1)
    held = tmp_path / "runs" / "now"
    held.mkdir(parents=True)
    descriptor = lock.take(held) if by == "a lock" else None
    if by == "a file":
        (held / "file").touch()
    names.remove_if_empty(held, above=names.absent(tmp_path))
    assert held.is_dir()
    if descriptor is not None:
        os.close(descriptor)
        names.remove_if_empty(held, above=())
        assert not held.exists()
        assert Path(tmp_path, "runs").exists()


def test_pipes_in_the_place_of_our_files_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / names.CLAIM)
    names.release(tmp_path)
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(OutputError, match="not empty"):
        check_new(tmp_path, config="seed: 0")
