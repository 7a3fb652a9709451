"""Whose a directory is: what is in the way of a new run, names that no other run has, and who may remove it."""

import contextlib
import fnmatch
import itertools
import os
import platform
from collections.abc import Collection
from pathlib import Path

from nas.errors import OutputError
from nas.storage import lock

CLAIM = ".claimed"  # a file that only one process can create; it stands for the run until there is a manifest

# What may be in a directory that a run is to begin in: what others put there before it or beside it. Names that begin
# with a dot are among them (.hydra, .nfs..., .snapshot, .DS_Store).
OTHERS = (
    ".*",
    "lost+found",  # of a disk's own top
    *("*.log", "*.log.*", "log", "log[._-]*", "*.out", "*.err", "stdout*", "stderr*", "nohup.out"),
    *("events.out.tfevents.*", "wandb", "mlruns"),  # trackers
)
HYDRA = frozenset({"config.yaml", "hydra.yaml", "overrides.yaml"})  # what Hydra records of a run


def in_the_way(directory: Path) -> list[str]:
    """The names in a directory that a new run would mix with."""
    names = sorted(path.name for path in directory.iterdir())
    hydra = HYDRA if HYDRA.issubset(names) else frozenset()  # for hydra.output_subdir=.
    return [
        name
        for name in names
        if not (
            name in hydra or any(fnmatch.fnmatchcase(name, other) for other in OTHERS) or of_hydra(directory / name)
        )
    ]


def of_hydra(path: Path) -> bool:
    """Whether it is the directory of Hydra's own files: hydra.output_subdir may call it as it likes."""
    return path.is_dir() and {one.name for one in path.iterdir()} == HYDRA


def check_empty(directory: Path) -> None:
    """Raises OutputError, naming it, if there is anything in a directory that a new run would mix with."""
    if found := in_the_way(directory):
        listed = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise OutputError(
            f"the output directory {directory} is not empty, expected a new one",
            fix=f"set hydra.run.dir to another, or move {listed} away",
        )


def claimed(directory: Path) -> Path:
    """A directory for one run alone: this one, or the first of ``<name>_2``, ``<name>_3``, ... that nobody has.

    Whoever creates the file CLAIM in it has it; file systems let one process do so, whether they have locks or not.
    """
    for number in itertools.count(1):
        candidate = directory if number == 1 else directory.with_name(f"{directory.name}_{number}")
        if claim(candidate):
            if not in_the_way(candidate):
                return candidate
            release(candidate)
    raise AssertionError("there is always another number")


def claim(directory: Path) -> bool:
    """Whether nobody had it before."""
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with open(directory / CLAIM, "x", encoding="utf-8") as claim:
                claim.write(owner())
            return True
        except FileNotFoundError:  # somebody has removed it who had no use for it
            continue
        except FileExistsError:
            return False


def release(directory: Path) -> None:
    """End a claim of this process: there is a manifest, which says the same, or no use for the directory."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if (directory / CLAIM).read_text(encoding="utf-8", errors="replace") == owner():
            (directory / CLAIM).unlink()


def owner() -> str:
    return f"{os.getpid()} on {platform.node()}"


def absent(directory: Path) -> frozenset[Path]:
    """Of a directory and those above it, which are not there."""
    directory = directory.absolute()
    return frozenset(path for path in (directory, *directory.parents) if not path.exists())


def remove_if_empty(directory: Path, *, above: Collection[Path]) -> None:
    """Remove a directory that nothing is in and that no other process holds, and then those of `above` it."""
    with contextlib.suppress(OSError):  # not empty, or not there
        if not any(directory.iterdir()) and (held := held_or_without(directory)) is not False:
            try:
                directory.rmdir()
            finally:
                if held is not None:
                    os.close(held)
    with contextlib.suppress(OSError):
        for parent in directory.absolute().parents:
            if parent not in above:
                break
            parent.rmdir()


def held_or_without(directory: Path) -> int | bool | None:
    """The lock of a directory; False if another process has it; None where there are no locks."""
    try:
        taken = lock.take(directory)
    except OutputError:
        return None
    return False if taken is None else taken
