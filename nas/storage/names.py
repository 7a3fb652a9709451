"""Finds a directory for a new run: which files are in the way, which names are taken, and what may be removed."""

import contextlib
import fnmatch
import itertools
import os
import platform
from collections.abc import Collection
from pathlib import Path

from nas.errors import OutputError
from nas.storage import lock
from nas.untrusted import regular_file

CLAIM = ".claimed"  # a file that only one process can create; it marks the directory of a run without a manifest
CLAIM_LIMIT = 1000  # bytes of it

# Files of other programs, which may be in the directory of a new run. Names that begin with a dot are among them
# (.hydra, .nfs..., .snapshot, .DS_Store).
OTHERS = (
    ".*",
    "lost+found",  # at the top of a disk
    *("*.log", "*.log.*", "log", "log[._-]*", "*.out", "*.err", "stdout*", "stderr*", "nohup.out"),
    *("events.out.tfevents.*", "wandb", "mlruns"),  # trackers
)
HYDRA = frozenset({"config.yaml", "hydra.yaml", "overrides.yaml"})  # that Hydra writes for a run


def in_the_way(directory: Path) -> list[str]:
    """Returns the names in a directory that a new run would mix with."""
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
    """Returns whether `path` is the directory of Hydra's own files. hydra.output_subdir may give it any name."""
    return path.is_dir() and {one.name for one in path.iterdir()} == HYDRA


def check_empty(directory: Path) -> None:
    """Raises OutputError, naming the directory, if it is a file, or has anything that a new run would mix with."""
    if not directory.is_dir():
        raise OutputError(
            f"the output directory {directory} is a file, expected a new directory", fix="set hydra.run.dir to another"
        )
    if found := in_the_way(directory):
        listed = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise OutputError(
            f"the output directory {directory} is not empty, expected a new one",
            fix=f"set hydra.run.dir to another, or move {listed} away",
        )


def claimed(directory: Path) -> Path:
    """Returns a directory for one run alone: this one, or the first free one of ``<name>_2``, ``<name>_3``, ...

    The process that creates the file CLAIM in a directory owns it. A file system lets only one process create a file,
    with or without locks.
    """
    for number in itertools.count(1):
        candidate = directory if number == 1 else directory.with_name(f"{directory.name}_{number}")
        if claim(candidate):
            if not in_the_way(candidate):
                return candidate
            release(candidate)
    raise AssertionError("there is always another number")


def claim(directory: Path) -> bool:
    """Claims a directory. Returns False if it is already claimed."""
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with open(directory / CLAIM, "x", encoding="utf-8") as claim:
                claim.write(owner())
            return True
        except FileNotFoundError:  # another process did not need the directory and has removed it
            continue
        except FileExistsError:
            return False


def release(directory: Path) -> None:
    """Removes this process's claim: there is a manifest now, or the directory is not needed."""
    with contextlib.suppress(OSError):
        if regular_file.read(directory / CLAIM, limit=CLAIM_LIMIT).decode(errors="replace") == owner():
            (directory / CLAIM).unlink()


def owner() -> str:
    return f"{os.getpid()} on {platform.node()}"


def absent(directory: Path) -> frozenset[Path]:
    """Returns which of a directory and its parents do not exist."""
    directory = directory.absolute()
    return frozenset(path for path in (directory, *directory.parents) if not path.exists())


def remove_if_empty(directory: Path, *, above: Collection[Path]) -> None:
    """Removes a directory if it is empty and no other process holds it, and then those of `above` that are empty."""
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
    """Returns the lock of a directory, False if another process has it, or None if there are no locks."""
    try:
        taken = lock.take(directory)
    except OutputError:
        return None
    return False if taken is None else taken
