"""Weights & Biases."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.storage import atomic
from nas.storage.forwarded import Forwarded


class WandB(Forwarded):
    """mode: ``online``, or ``offline`` for files that ``wandb sync`` sends later.

    ``wandb login`` and the environment variables of the client choose the account and the server."""

    package = "wandb"

    def __init__(self, *, directory: Path, project: str = "gumbel-nas", mode: str = "online") -> None:
        atomic.refuse_link(directory / "wandb")  # of a run that somebody else prepared
        super().__init__(directory=directory)
        self._wandb = self.client()
        self._run = self._wandb.init(
            project=project, mode=mode, dir=str(directory), name=directory.name, id=self.known_as(), resume="allow"
        )
        for group in ("search", "arch", "gap", "collapse", "pictures"):
            self._run.define_metric(f"{group}/*", step_metric="search/epoch")
        self._run.define_metric("retrain/*", step_metric="retrain/epoch")

    def send(self, stage: str, epoch: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, f"{stage}/epoch": epoch})

    def picture(self, tag: str, png: bytes, epoch: int) -> None:
        from PIL import Image

        self._run.log({tag: self._wandb.Image(Image.open(io.BytesIO(png))), "search/epoch": epoch})

    def describe(self, *, texts: Mapping[str, str], settings: Mapping[str, Any], scores: Sequence[str]) -> None:
        self._run.config.update({**settings, "texts": dict(texts)}, allow_val_change=True)

    def finish(self, scores: Mapping[str, float], *, texts: Mapping[str, str]) -> None:
        self._run.summary.update({**scores, **texts})

    def close(self) -> None:
        self._run.finish()
        super().close()
