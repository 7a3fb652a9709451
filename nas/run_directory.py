"""The one place where a run leaves everything."""

import datetime
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from nas import __version__, atomic, processes
from nas.errors import OutputError
from nas.runtime import Runtime

MANIFEST = "manifest.json"


class RunDirectory:
    """A directory that belongs to one run. Raises OutputError if it holds another run already.

    Use it as a context: it records how the run ended. config: the resolved configuration as YAML.
    writes: whether this process does; of several only one.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: str,
        command: list[str],
        seed: int,
        runtime: Runtime,
        writes: bool = True,
    ) -> None:
        if writes and path.exists() and any(path.iterdir()):
            raise OutputError(
                f"the output directory {path} is not empty, expected a new one", fix="set hydra.run.dir to another"
            )
        self.path = path
        self.writes = writes
        self._runtime = runtime
        self._started = time.monotonic()
        self._manifest: dict[str, Any] = {
            "command": command,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "status": "running",
            "commit": commit(),
            "versions": {
                "gumbel-nas": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,  # unlike the metadata it names the CUDA it was built for
                **{name: metadata.version(name) for name in ("torchvision", "hydra-core", "numpy")},
            },
            "platform": platform.platform(),
            "device": runtime.describe(),
            "processes": processes.world(),
            "seed": seed,
        }
        if writes:
            path.mkdir(parents=True, exist_ok=True)
            atomic.write_text(path / "config.yaml", config)
        self.record()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        status = "finished" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed"
        self.record(
            status=status,
            wall_seconds=round(time.monotonic() - self._started, 1),
            peak_memory_bytes=self._runtime.peak_memory(),
        )

    def record(self, **facts: Any) -> None:
        """Add to the manifest."""
        self._manifest |= facts
        if self.writes:
            atomic.write_json(self.path / MANIFEST, self._manifest)

    def subdirectory(self, name: str) -> Path:
        path = self.path / name
        if self.writes:
            path.mkdir(exist_ok=True)
        return path


def commit() -> str | None:
    """The commit of the checkout this code runs from, with ``-dirty`` if it was changed; None for an installation."""
    checkout = Path(__file__).parent.parent
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
