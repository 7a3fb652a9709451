"""The worst mistakes of a classifier on a split: the wrong answers that it was most sure of, with small pictures."""

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nas.data.bundle import Split
from nas.data.labels import IGNORED
from nas.data.spec import ImageSpec

FILE = "mistakes.json"
MOST = 24
SIDE = 96  # pixels of a picture at most, which takes some ten thousand bytes


class Mistakes:
    """Keeps the `most` worst of the examples that `add` is given in the order of their split. Waits for no device."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._seen = 0
        self._kept: Tensor | None = None  # (n, 4) float64: confidence, -1 of a right answer; index; label; answer

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """outputs: (B, classes) scores; targets: (B,) labels. Of anything else there are no mistakes to show."""
        if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point() or outputs.device.type == "mps":
            return
        confidence, answer = outputs.detach().double().softmax(dim=1).max(dim=1)
        wrong = (answer != targets) & (targets != IGNORED) & confidence.isfinite()
        index = torch.arange(self._seen, self._seen + len(targets), device=targets.device)
        self._seen += len(targets)
        rows = torch.stack([confidence.where(wrong, -1), index.double(), targets.double(), answer.double()], dim=1)
        rows = rows if self._kept is None else torch.cat([self._kept, rows])
        self._kept = rows[rows[:, 0].topk(min(self._most, len(rows))).indices]

    def found(self, split: Split, spec: ImageSpec) -> list[dict[str, Any]]:
        """Returns the content of ``mistakes.json``: the worst first, each with its picture as a PNG in base64.

        Empty where the images are not grey or of three colours.
        """
        rows = [] if self._kept is None else [row for row in self._kept.tolist() if row[0] >= 0]
        if not rows or spec.channels not in (1, 3):
            return []
        order = torch.tensor([int(row[1]) for row in rows])
        images, _ = next(iter(split.batches([order], device=torch.device("cpu"))))
        assert isinstance(images, Tensor)
        return [
            {
                "index": int(index),
                "true": spec.class_names[int(label)],
                "predicted": spec.class_names[int(answer)],
                "confidence": confidence,
                "png": thumbnail(image),
            }
            for (confidence, index, label, answer), image in zip(rows, images, strict=True)
        ]


def thumbnail(image: Tensor) -> str:
    """image: uint8 (C, H, W), C 1 or 3. Returns a PNG in base64."""
    pixels = image.movedim(0, -1).squeeze(-1).contiguous().numpy()
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
