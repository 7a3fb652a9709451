"""The directory in which a run leaves all its files."""

import contextlib
import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from nas import __version__
from nas.errors import ConfigError, OutputError, WorkerLostError
from nas.runtime import distributed
from nas.runtime.runtime import Runtime
from nas.settings.dotted import among
from nas.storage import atomic, forks, lock as locks, names
from nas.storage.command_line import setting
from nas.storage.signals import Interrupted
from nas.untrusted import plain_data, regular_file

MANIFEST, CONFIG = "manifest.json", "config.yaml"
SUBDIRECTORIES = ("search", "retrain", "export")
SIZE_LIMIT = 1_000_000  # bytes of a manifest that is read; one takes about a thousand

# The fields of a manifest that are read again -> their types.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "status": str,
    "command": list,
    "started": str,
    "resumed": list,
    "wall_seconds": (int, float),
    "process": str,
    "processes": int,
    "commit": (str, type(None)),
    "versions": dict,
    "seed": int,
    "device": str,
}
ORIGIN = ("command", "commit", "versions", "seed", "device", "started")


class RunDirectory:
    """A directory that belongs to one run, and to one process at a time.

    Use it as a context: it records how the run ended. config: the resolved configuration as YAML.
    resume: continue the run in the directory. writes: whether this process writes; only one of several does.
    lock: whether to keep other processes out, which some file systems cannot.
    Raises OutputError if the directory holds another run, or no run to resume, if another process is writing into it,
    or if it cannot be locked.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: str,
        command: list[str],
        seed: int,
        runtime: Runtime,
        resume: bool = False,
        writes: bool = True,
        lock: bool = True,
    ) -> None:
        self.path = path
        self.resumed = resume
        self.writes = writes
        self._lock: int | None = None
        if writes:
            make_directory(path)
            self._lock = locked(path) if lock else None
            try:
                if not resume:
                    check_new(path, config=config)
            except OutputError:
                self._unlock()
                raise
        self._runtime = runtime
        self._started = time.monotonic()
        before = read_manifest(path) if resume else {}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._seconds_before = float(before.get("wall_seconds", 0.0))
        self._manifest: dict[str, Any] = {
            "command": before.get("command", command),
            "started": before.get("started", now),
            **({"resumed": [*before.get("resumed", []), now]} if resume else {}),
            "status": "running",
            "process": f"{os.getpid()} on {platform.node()}",
            "commit": commit(),
            "versions": {
                "gumbel-nas": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,  # names the CUDA version, unlike the metadata
                **{name: metadata.version(name) for name in ("torchvision", "hydra-core", "numpy")},
            },
            "platform": platform.platform(),
            "device": runtime.describe(),
            "processes": distributed.world(),
            "seed": seed,
        }
        if writes:
            for place in (path, *(path / name for name in SUBDIRECTORIES)):
                atomic.remove_left(place)
            atomic.write_text(path / CONFIG, config)
        self.record()
        if writes:
            names.release(path)  # the manifest replaces the claim

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        interrupted = isinstance(error, KeyboardInterrupt | Interrupted)
        if isinstance(error, WorkerLostError) and not error.saved:
            error.saved = f"resume={self.path} goes on from the last checkpoint"
        try:
            self.record(
                status="finished" if error is None else "interrupted" if interrupted else "failed",
                peak_memory_bytes=self._runtime.peak_memory(),
            )
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def record(self, **facts: Any) -> None:
        """Adds facts to the manifest, and the time until now, which a killed process cannot add."""
        self._manifest |= {"wall_seconds": round(self._seconds_before + time.monotonic() - self._started, 1), **facts}
        if self.writes:
            atomic.write_json(self.path / MANIFEST, self._manifest)

    def subdirectory(self, name: str) -> Path:
        path = self.path / name
        if self.writes:
            atomic.make_directory(path)
        return path


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of the run in a directory. Raises OutputError if there is none, or if it is damaged."""
    try:
        manifest = plain_data.from_json(regular_file.read(path / MANIFEST, limit=SIZE_LIMIT))
        if isinstance(manifest, dict) and all(has_type(manifest, *field) for field in FIELDS.items()):
            return manifest
    except (OSError, ValueError):
        pass
    raise OutputError(
        f"there is no run in {path} that could be resumed, expected its {MANIFEST}",
        fix="give the directory that a run left, e.g. resume=runs/my_run",
    )


def has_type(manifest: dict[str, Any], field: str, kind: type | tuple[type, ...]) -> bool:
    """Returns whether a field has its type; a list or dict must hold strings.

    All fields but the status may be missing.
    """
    if field not in manifest:
        return field != "status"
    value = manifest[field]
    held = value if isinstance(value, list) else value.values() if isinstance(value, dict) else []
    return isinstance(value, kind) and not isinstance(value, bool) and all(isinstance(item, str) for item in held)


def recorded(path: Path) -> dict[str, Any] | None:
    """Returns what an export keeps of the manifest; None if there is no manifest, or if it is damaged.

    There may be none, because people copy checkpoints.
    """
    try:
        found = read_manifest(path)
    except OutputError:
        return None
    return {key: found[key] for key in ORIGIN} if set(ORIGIN) <= found.keys() else None


def found_data(path: Path) -> dict[str, Any]:
    """The facts about the data set in the manifest of a run, see `nas.data.survey`; empty if there are none."""
    try:
        found = read_manifest(path).get("data")
    except OutputError:
        return {}
    return found if isinstance(found, dict) else {}


def check_processes(manifest: dict[str, Any], now: int, *, may_change: Sequence[str]) -> None:
    """Raises ConfigError if a run continues with another number of processes than before, unless that is allowed."""
    before = manifest.get("processes", now)
    if before != now and not among("processes", may_change):
        raise ConfigError(
            f"the run was started with processes={before}, got processes={now}, which changes the results",
            fix=f"start {before}{', by torchrun' if before > 1 else ', without torchrun'}, or allow it: "
            "may_change=[processes]",
        )


def make_directory(path: Path) -> None:
    """Makes a directory for a run, unless it is there. Raises OutputError if that is impossible, e.g. for a file."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the directory {path} of the run cannot be made ({error.strerror})", fix="set hydra.run.dir to another one"
        ) from error


def check_usable(path: Path, *, config: str, lock: bool) -> None:
    """Raises OutputError if `RunDirectory` would for a new run. Makes nothing."""
    if path.is_dir():
        if lock:
            os.close(locked(path))
        check_new(path, config=config)


def check_new(path: Path, *, config: str | None = None) -> None:
    """Raises OutputError if a directory holds a run, or anything else that a new run would mix with.

    config: of the new run. A run that was killed before it had a manifest left only its configuration; if both are
    equal, the new run may use the directory.
    """
    if (path / MANIFEST).exists():
        raise OutputError(
            f"the output directory {path} holds a run, expected a new directory",
            fix=f"set hydra.run.dir to another, or go on with that run: {setting('resume', path)}",
        )
    if names.in_the_way(path) == [CONFIG] and config is not None:
        with contextlib.suppress(OSError):
            if regular_file.read(path / CONFIG, limit=SIZE_LIMIT) == config.encode():
                return
    names.check_empty(path)


def locked(path: Path, *, setting: str = "hydra.run.dir") -> int:
    """Locks a directory and returns its descriptor. The system releases the lock when this process ends in any way.

    setting: by which a user chooses the directory.

    Raises OutputError if another process has the lock, or if there are no locks.
    """
    descriptor = locks.take(path)
    if descriptor is None:
        owner = "another one"
        with contextlib.suppress(OutputError):
            owner = str(read_manifest(path).get("process", owner))
        raise OutputError(
            f"{path} is being written by another process ({owner})", fix=f"wait for it, or set {setting} to another"
        )
    forks.close_in_children(descriptor)  # otherwise workers of a killed run would keep the lock
    return descriptor


def commit() -> str | None:
    """Returns the commit of this code's checkout, with ``-dirty`` if files were changed; None for an installation."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def command_line() -> list[str]:
    """Returns the command of this process as a user types it, also after ``python -m nas.cli.run``."""
    started = Path(sys.argv[0])
    module = started.parts[-3:-1] == ("nas", "cli")
    return [f"nas-{started.stem}" if module else started.name, *sys.argv[1:]]
