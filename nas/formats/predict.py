"""Predicts the classes of image files, which are read exactly as in the training."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nas.data.image_file import EXTENSIONS, check_image_size, pillow_warnings, read_pixels
from nas.data.spec import DataSpec, ImageSpec
from nas.errors import DataError, SpaceError, described
from nas.formats.export import METADATA
from nas.formats.load import from_export, loaded, read_metadata
from nas.runtime.runtime import Runtime, device_of
from nas.settings.allowed_targets import Allowed
from nas.storage import checkpoint_file
from nas.training.trained import Trained

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what formulas of spreadsheets begin with


@dataclass(frozen=True)
class Prediction:
    """classes: the most probable first, with their softmax probabilities. problem: why there are none, if not empty."""

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    problem: str = ""


class Predictor:
    """network: in eval mode. spec: of the data it was trained on, which says how files are read.

    A network that was not trained on files gets images of the size of its training.
    Raises DataError unless its inputs are grey or RGB images.
    """

    def __init__(self, network: nn.Module, spec: DataSpec) -> None:
        if not isinstance(spec, ImageSpec) or spec.channels not in (1, 3):
            raise DataError(
                f"the network takes {spec.description}, expected one that takes grey or RGB images",
                fix="run it from Python: nas.load(...)",
            )
        self._network = network
        self.spec = spec
        # Sides that differ cannot be asked for in a file: the network gets what is there.
        square = spec.height == spec.width
        self.size = spec.image_size if spec.from_files else spec.height if square else None
        check_image_size(self.size)  # a file may ask for any
        self._device = device_of(network)
        self._prepare = spec.preparation(None, self._device)

    @classmethod
    def open(cls, path: str | Path, *, allow: Allowed, device: str) -> "Predictor":
        """Opens the network of an export, a run or a checkpoint. Raises the errors of `nas.load`."""
        path = Path(path).expanduser()
        if (path / METADATA).is_file():
            source = path / METADATA
            network = from_export(path, allow=allow, device=device)
            with checkpoint_file.taken_from(source):
                spec = DataSpec.from_dict(read_metadata(source)["data"])
            return cls(network, spec)
        file = path / "retrain" / "checkpoint.pt" if path.is_dir() else path
        if not file.is_file():
            loaded(path, allow=allow, device=device)  # which says what is missing
        trained = Trained.load(file, allow=list(allow), runtime=Runtime(device=device))
        return cls(trained.network, trained.spec)

    def predict(self, paths: Iterable[Path], *, top: int, batch_size: int) -> Iterator[Prediction]:
        """In the order of the paths. A file that cannot be read gets a prediction with a problem."""
        with pillow_warnings():
            waiting: list[tuple[Path, Tensor]] = []
            for path in paths:
                try:
                    pixels = read_pixels(path, channels=self.spec.channels, size=self.size)
                except DataError as error:
                    yield from self._of_batch(waiting, top)
                    waiting = []
                    yield Prediction(path, problem=error.problem)
                    continue
                if waiting and (len(waiting) == batch_size or pixels.shape != waiting[0][1].shape):
                    yield from self._of_batch(waiting, top)
                    waiting = []
                waiting.append((path, pixels))
            yield from self._of_batch(waiting, top)

    @torch.no_grad()
    def _of_batch(self, waiting: Sequence[tuple[Path, Tensor]], top: int) -> Iterator[Prediction]:
        if not waiting:
            return
        images = torch.stack([pixels for _, pixels in waiting]).to(self._device)
        try:
            outputs = self._network(self._prepare(images, Generator()))
        except (RuntimeError, ValueError) as error:  # too small for its strides, say
            for path, pixels in waiting:
                size = "x".join(map(str, pixels.shape[1:]))
                yield Prediction(path, problem=f"the network cannot take {path} of {size} pixels ({described(error)})")
            return
        names = self.spec.class_names
        if outputs.shape != (len(waiting), len(names)):
            raise SpaceError(
                f"the network returns {tuple(outputs.shape)} for {len(waiting)} images, expected a score for each of "
                f"its {len(names)} classes",
                fix="run it from Python: nas.load(...)",
            )
        best = outputs.float().softmax(dim=1).topk(min(top, len(names)), dim=1)
        for (path, _), of, which in zip(waiting, best.values.tolist(), best.indices.tolist(), strict=True):
            yield Prediction(path, tuple((names[index], value) for index, value in zip(which, of, strict=True)))


def images_in(path: Path) -> list[Path]:
    """The file itself, or the images in a folder and below it, by name.

    Raises DataError for a folder without images, and if there is no such file.
    """
    if path.is_dir():
        found = sorted(one for one in path.rglob("*") if one.suffix.lower() in EXTENSIONS and one.is_file())
        if not found:
            raise DataError(
                f"there are no images in {path}", fix=f"give files with one of {', '.join(sorted(EXTENSIONS))}"
            )
        return found
    if not path.exists():
        raise DataError(f"{path} does not exist", fix="give a file, or a folder of images")
    return [path]


def to_csv(predictions: Sequence[Prediction], *, top: int) -> str:
    """Returns a row for each file: file, class and probability of the most probable classes, problem.

    A text that a spreadsheet would run as a formula gets a ' in front, as names of files and classes are of strangers.
    """
    stream = io.StringIO()
    rows: Any = csv.writer(stream, lineterminator="\n")
    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    rows.writerow(["file", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability")), "problem"])
    for one in predictions:
        cells = [cell for name, value in one.classes for cell in (inert(name), f"{value:.6f}")]
        rows.writerow([inert(str(one.path)), *cells, *[""] * (2 * len(ranks) - len(cells)), inert(one.problem)])
    return stream.getvalue()


def inert(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULAS) else text
