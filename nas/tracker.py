"""Where the metrics of a run go: always ``metrics.jsonl``, by default TensorBoard as well."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self


class JsonLines:
    """Appends one line an epoch to ``metrics.jsonl``: {"stage": ..., "epoch": ..., <metric>: <value>, ...}."""

    def __init__(self, *, directory: Path) -> None:
        self._stream = open(directory / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115  closed in close()

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """stage: ``search`` or ``retrain``; epoch: from 0."""
        # JSON has no NaN and no infinity.
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._stream.write(json.dumps({"stage": stage, "epoch": epoch, **finite}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Silent(JsonLines):
    """Logs nothing: of processes that write nothing."""

    def __init__(self) -> None:
        pass

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard(JsonLines):
    """The same as curves named ``<stage>/<metric>`` over the epochs, in event files in the run's directory."""

    def __init__(self, *, directory: Path) -> None:
        super().__init__(directory=directory)
        from torch.utils.tensorboard import SummaryWriter  # a second to import, and not everybody's choice

        self._writer = SummaryWriter(log_dir=str(directory))

    def log(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        super().log(stage, epoch, metrics)
        for name, value in metrics.items():
            self._writer.add_scalar(f"{stage}/{name}", value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
        super().close()
