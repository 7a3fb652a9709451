"""MLflow."""

import io
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.storage import atomic
from nas.storage.forwarded import ID, Forwarded


class MLflow(Forwarded):
    """Logs to the server at ``MLFLOW_TRACKING_URI``; without this variable, to files in the run's ``mlruns``."""

    package = "mlflow"

    def __init__(self, *, directory: Path, experiment: str = "gumbel-nas") -> None:
        atomic.refuse_link(directory / "mlruns")  # of a run that somebody else prepared
        super().__init__(directory=directory)
        self.client()
        from mlflow.tracking import MlflowClient

        local = (directory / "mlruns").absolute().as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer releases ask for it
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", local))
        if not (directory / ID).exists():
            found = self._client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self._client.create_experiment(experiment)
            self.known_as(self._client.create_run(number, run_name=directory.name).info.run_id)
        self._run = self.known_as()

    def send(self, stage: str, epoch: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        found = {re.sub(r"[^\w./ -]", "_", tag): value for tag, value in values.items()}  # as it allows
        now = int(1000 * time.time())
        self._client.log_batch(self._run, [Metric(tag, value, now, epoch) for tag, value in found.items()])

    def picture(self, tag: str, png: bytes, epoch: int) -> None:
        from PIL import Image

        with Image.open(io.BytesIO(png)) as image:
            self._client.log_image(self._run, image.convert("RGB"), artifact_file=f"{tag}_{epoch:05}.png")

    def describe(self, *, texts: Mapping[str, str], settings: Mapping[str, Any], scores: Sequence[str]) -> None:
        before = self._client.get_run(self._run).data.params
        for name, value in settings.items():
            if before.get(name, str(value)) == str(value):
                self._client.log_param(self._run, name, value)
            else:  # changed on resumption, which MLflow refuses for a parameter
                self._client.set_tag(self._run, f"resumed with {name}", value)
        self._texts(texts)

    def finish(self, scores: Mapping[str, float], *, texts: Mapping[str, str]) -> None:
        for tag, value in scores.items():
            self._client.log_metric(self._run, tag, value)
        self._texts(texts)
        self._client.set_terminated(self._run)

    def _texts(self, texts: Mapping[str, str]) -> None:
        for title, text in texts.items():
            self._client.log_text(self._run, text, f"{title}.txt")
