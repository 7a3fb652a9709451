"""Trackio, which keeps runs on this machine."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.storage.forwarded import Forwarded


class Trackio(Forwarded):
    """Logs to Trackio. The environment variable TRACKIO_DIR sets its directory."""

    package = "trackio"

    def __init__(self, *, directory: Path, project: str = "gumbel-nas") -> None:
        super().__init__(directory=directory)
        self._trackio = self.client()
        self._project = project
        self._run: Any = None

    def describe(self, *, texts: Mapping[str, str], settings: Mapping[str, Any], scores: Sequence[str]) -> None:
        name = f"{self._directory.name}-{self.known_as()}"
        config = {**settings, **texts}
        self._run = self._trackio.init(project=self._project, name=name, config=config, resume="allow", embed=False)

    def send(self, stage: str, epoch: int, values: Mapping[str, float]) -> None:
        if self._run is not None:
            self._run.log({**values, f"{stage}/epoch": epoch})

    def picture(self, tag: str, png: bytes, epoch: int) -> None:
        from PIL import Image

        if self._run is not None:
            with Image.open(io.BytesIO(png)) as image:
                self._run.log({tag: self._trackio.Image(image.convert("RGB")), "search/epoch": epoch})

    def finish(self, scores: Mapping[str, float], *, texts: Mapping[str, str]) -> None:
        if self._run is not None:
            self._run.log({**scores, **texts})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
        super().close()
