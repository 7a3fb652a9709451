"""The one place where a run leaves everything."""

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
from nas.storage import atomic, forks, names
from nas.storage import lock as locks
from nas.storage.command_line import setting
from nas.storage.signals import Interrupted
from nas.untrusted import plain_data, regular_file

MANIFEST, CONFIG = "manifest.json", "config.yaml"
SUBDIRECTORIES = ("search", "retrain", "export")
SIZE_LIMIT = 1_000_000  # bytes of a manifest that is read; one takes about a thousand

# What is read of it again, and its types.
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
    resume: go on with the run that is there. writes: whether this process does; of several only one.
    lock: whether to keep other processes out, which some file systems cannot.
    Raises OutputError if the directory holds another run, or none that could be resumed, or if another process is
    writing into it, or if it cannot be locked.
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
            path.mkdir(parents=True, exist_ok=True)
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
                "torch": torch.__version__,  # unlike the metadata it names the CUDA it was built for
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
            names.release(path)  # the manifest stands for it from now on

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        interrupted = isinstance(error, KeyboardInterrupt | Interrupted)
        if isinstance(error, WorkerLostError) and not error.saved:
            error.saved = f"resume={self.path} goes on from the last checkpoint"
        try:
            self.record(
                status="finished" if error is None else "interrupted" if interrupted else "failed",
                wall_seconds=round(self._seconds_before + time.monotonic() - self._started, 1),
                peak_memory_bytes=self._runtime.peak_memory(),
            )
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def record(self, **facts: Any) -> None:
        """Add to the manifest."""
        self._manifest |= facts
        if self.writes:
            atomic.write_json(self.path / MANIFEST, self._manifest)

    def subdirectory(self, name: str) -> Path:
        path = self.path / name
        if self.writes:
            atomic.make_directory(path)
        return path


def read_manifest(path: Path) -> dict[str, Any]:
    """Of the run in a directory. Raises OutputError if there is none, or not one that a run has written."""
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
    """Of a field; of a list, whether it is one of strings. All but the first may be missing."""
    if field not in manifest:
        return field != "status"
    value = manifest[field]
    held = value if isinstance(value, list) else value.values() if isinstance(value, dict) else []
    return isinstance(value, kind) and not isinstance(value, bool) and all(isinstance(item, str) for item in held)


def recorded(path: Path) -> dict[str, Any] | None:
    """What the run in a directory recorded of itself, for an export; None where it is not there, for checkpoints get
    copied, or not as a run writes it."""
    try:
        found = read_manifest(path)
    except OutputError:
        return None
    return {key: found[key] for key in ORIGIN} if set(ORIGIN) <= found.keys() else None


def found_data(path: Path) -> dict[str, Any]:
    """What the run in a directory found of its data set, as `nas.data.survey` has it; empty where it is not there."""
    try:
        found = read_manifest(path).get("data")
    except OutputError:
        return {}
    return found if isinstance(found, dict) else {}


def check_processes(manifest: dict[str, Any], now: int, *, may_change: Sequence[str]) -> None:
    """Raises ConfigError if a run is to go on in another number of processes than before, unless that is allowed."""
    before = manifest.get("processes", now)
    if before != now and not among("processes", may_change):
        raise ConfigError(
            f"the run was started with processes={before}, got processes={now}, which give other bits",
            fix=f"start {before}{', by torchrun' if before > 1 else ', without torchrun'}, or allow it: "
            "may_change=[processes]",
        )


def check_new(path: Path, *, config: str | None = None) -> None:
    """Raises OutputError if a directory holds a run, or anything else that one would mix with.

    config: of the run that is to begin. One that was killed before it had a manifest left no more than that.
    """
    if (path / MANIFEST).exists():
        raise OutputError(
            f"the output directory {path} holds a run, expected a new directory",
            fix=f"set hydra.run.dir to another, or go on with that run: {setting('resume', path)}",
        )
    if names.in_the_way(path) == [CONFIG] and config is not None and (path / CONFIG).read_bytes() == config.encode():
        return
    names.check_empty(path)


def locked(path: Path) -> int:
    """The descriptor of a directory with a lock, which the system takes back when this process ends, however it ends.

    Raises OutputError if another process has it, or if there are no locks.
    """
    descriptor = locks.take(path)
    if descriptor is None:
        owner = "another one"
        with contextlib.suppress(OutputError):
            owner = str(read_manifest(path).get("process", owner))
        raise OutputError(
            f"{path} is being written by another process ({owner})", fix="wait for it, or set hydra.run.dir to another"
        )
    forks.close_in_children(descriptor)  # or a lost run's workers would hold it
    return descriptor


def commit() -> str | None:
    """The commit of the checkout this code runs from, with ``-dirty`` if it was changed; None for an installation."""
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
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
