"""The user's own images, in one folder for each class."""

import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nas.data.bundle import DataBundle, Split
from nas.data.class_folders import Found, Listing, digest_of_file, find_images, find_to_score, find_training
from nas.data.image_file import Header, check_image_size, pillow_warnings, read_header, read_pixels
from nas.data.spec import DataSpec, ImageSpec
from nas.data.split import StreamSplit, TensorSplit, fits_in_memory
from nas.data.statistics import channel_statistics
from nas.data.survey import copied_files, of_folder, of_headers
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError
from nas.runtime import distributed
from nas.settings.arguments import path_of

STATISTICS_IMAGES = 10_000  # training images that give mean and std of a streamed data set
STATISTICS_BYTES = 2**26  # of these images in memory at the same time
HEADERS = 10_000  # headers that are read if the settings give the shape of the images
NAMED = 5  # damaged files that a warning names
WORKERS = 1024  # processes that read images
DECODE_CHUNK = 64  # images per task: of small images, threads that take one at a time decode half as many a second


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Images in one folder for each class.

    The folders are `root/train/<class>/*` and `root/test/<class>/*`, or `root/<class>/*`. In the second case a
    stratified `test_fraction` is held out, the same in every run. `val` (or `validation`, `valid`) is the test folder
    if there is no `test`; if there are both, the images of `val` are for training.

    Folders inside a class folder are searched too. Hidden files and files that are not images are passed over. Classes
    are numbered in the order of their names. Mean and std are those of the training images, or of 10,000 evenly spaced
    training images if the data set is streamed.

    image_size: scale and crop every image to a square of this side; None: all must have one size, square or not.
    channels: 1 or 3; None: 1 if every image is grey, else 3.
    damaged: ``stop`` raises an error for a file that cannot be decoded. ``skip`` leaves such files out, and prints
    their number and names; it decodes every file once more before the start.
    workers: processes that read the images if the images, as uint8, do not fit into memory_limit_mb (MiB).
    links: whether folders that are links out of the root are read.
    """

    root: str
    image_size: int | None = None
    channels: int | None = None
    test_fraction: float = 0.2
    damaged: str = "stop"
    workers: int = 2
    memory_limit_mb: int = 4096
    crop_padding: int = 4
    flip: bool = True
    links: bool = False

    def load(self) -> DataBundle:
        """Loads the data set. Raises ConfigError if a setting cannot work, DataError if something is wrong with the
        files."""
        self._check_settings()
        root = path_of(self.root, "data.root")
        return self._bundle(root, find_images(root, test_fraction=self.test_fraction, links=self.links))

    def training(self) -> DataBundle:
        """Loads the training images alone, with an empty test split: nothing is held out. Raises as `load` does."""
        self._check_settings()
        root = path_of(self.root, "data.root")
        return self._bundle(root, find_training(root, links=self.links))

    def _bundle(self, root: Path, found: Found) -> DataBundle:
        train, test, class_names, held_out, account = found
        with pillow_warnings():
            if self.damaged == "skip":
                train, test = self._whole(train, class_names, "train"), self._whole(test, class_names, "test")
            shape, headers = self._common_shape(train.paths + test.paths, channels=self.channels)
            in_memory = fits_in_memory(
                images=len(train.paths) + len(test.paths), shape=shape, limit_mb=self.memory_limit_mb
            )
            train_files = ImageFiles(train, shape=shape, size=self.image_size)
            test_files = ImageFiles(test, shape=shape, size=self.image_size)
            splits: list[Split]
            if in_memory:
                pixels = train_files.decode(range(len(train.paths)))
                mean, std = channel_statistics([pixels])
                splits = [TensorSplit(pixels, train.labels), self._split(test_files, in_memory=True)]
            else:
                mean, std = channel_statistics(train_files.sample(STATISTICS_IMAGES))
                splits = [self._split(files, in_memory=False) for files in (train_files, test_files)]
        if std == (1.0,) * len(std) and distributed.first():  # the std of pixels that differ is at most 0.5
            values = ", ".join(str(round(value * 255)) for value in mean)
            print(
                f"warning: every pixel of the {len(train.paths)} training images has the value {values}; of files with "
                "16 bits a pixel only the upper 8 are kept: scale files with fewer bits to the full range",
                file=sys.stderr,
            )
        files = train.paths + test.paths
        left_out = len(found.train.paths) + len(found.test.paths) - len(files)
        return DataBundle(
            spec=self._spec(root, shape, class_names, mean=mean, std=std),
            train=splits[0],
            test=splits[1],
            augment=Augment(crop_padding=self.crop_padding, flip=self.flip),
            trained_on=train.digest(root),
            held_out=held_out,
            found={
                **of_folder(account, class_names, root),
                **of_headers(headers, files=len(files), scaled_to=self.image_size),
                **copied_files(train.paths, test.paths),
                **({"damaged": left_out} if left_out else {}),
            },
            sample=train.sample(),
        )

    def to_score(self, spec: DataSpec, *, sample: tuple[str, ...]) -> tuple[DataBundle, int]:
        """Returns the images of `find_to_score` as a test split, and how many of them are known to be training images.

        spec: of the network's training, for class names and channels. sample: digests of its training files.
        Raises DataError and ConfigError as `load` does.
        """
        self._check_settings()
        root = path_of(self.root, "data.root")
        listing, account = find_to_score(root, class_names=spec.class_names, links=self.links)
        with pillow_warnings():
            if self.damaged == "skip":
                listing = self._whole(listing, spec.class_names, "test")
            shape, headers = self._common_shape(listing.paths, channels=self.channels or spec.channels)
            files = ImageFiles(listing, shape=shape, size=self.image_size)
            fits = fits_in_memory(images=len(files), shape=shape, limit_mb=self.memory_limit_mb)
            test = self._split(files, in_memory=fits)
        grey = ((0.5,) * shape[0], (0.5,) * shape[0])  # not used: the network brings the statistics of its training
        known = set(sample)
        bundle = DataBundle(
            spec=self._spec(root, shape, spec.class_names, mean=grey[0], std=grey[1]),
            train=test.subset(torch.arange(0)),
            test=test,
            augment=None,
            found={
                **of_folder(account, (), root),
                **of_headers(headers, files=len(files), scaled_to=self.image_size),
            },
        )
        return bundle, sum(digest_of_file(path) in known for path in listing.paths) if known else 0

    def is_trained_on(self, trained_on: str) -> bool:
        """Returns whether `load` would train on the files of an earlier training, and holds out its test images.

        Compares the names of the files. The root may have moved since then.
        """
        root = path_of(self.root, "data.root")
        try:
            found = find_images(root, test_fraction=self.test_fraction, links=self.links)
        except (DataError, ConfigError):
            return False
        train = found.train
        if self.damaged == "skip":
            with pillow_warnings():
                train = self._whole(train, found.class_names, "train")
        return found.held_out and train.digest(root) == trained_on

    def _spec(
        self,
        root: Path,
        shape: tuple[int, int, int],
        class_names: tuple[str, ...],
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> ImageSpec:
        return ImageSpec(
            name=root.resolve().name,
            input_shapes=(shape,),
            class_names=class_names,
            mean=mean,
            std=std,
            from_files=True,
            image_size=self.image_size,
        )

    def _split(self, files: "ImageFiles", *, in_memory: bool) -> Split:
        if in_memory:
            return TensorSplit(files.decode(range(len(files))), files.labels)
        return StreamSplit(files, files.labels, workers=self.workers)

    def _check_settings(self) -> None:
        if self.channels not in (None, 1, 3):
            raise ConfigError(
                f"data.channels must be 1, 3 or null, got {self.channels}",
                fix="set data.channels=null to look at the files",
            )
        if self.damaged not in ("stop", "skip"):
            raise ConfigError(f"data.damaged must be stop or skip, got {self.damaged!r}", fix="set data.damaged=stop")
        check_image_size(self.image_size)
        if self.workers > WORKERS:
            raise ConfigError(f"data.workers must be at most {WORKERS}, got {self.workers}", fix="set data.workers=2")
        for field in ("workers", "memory_limit_mb"):
            if getattr(self, field) < 0:
                raise ConfigError(f"data.{field} must be >= 0, got {getattr(self, field)}", fix=f"set data.{field}=0")

    def _whole(self, listing: Listing, class_names: tuple[str, ...], split: str) -> Listing:
        """Returns the files of a split that can be decoded. Raises DataError if a class has none left to train on."""

        def problem(path: Path) -> str | None:
            try:
                read_pixels(path, channels=self.channels or 3, size=self.image_size)
            except DataError as error:
                return error.problem
            return None

        with ThreadPoolExecutor() as pool:
            problems = list(pool.map(problem, listing.paths))
        found = [one for one in problems if one is not None]
        if not found:
            return listing
        if distributed.first():
            named = "; ".join([*found[:NAMED], *[f"and {len(found) - NAMED} more"] * (len(found) > NAMED)])
            print(f"warning: {len(found)} of {len(problems)} {split} images are left out: {named}", file=sys.stderr)
        if len(found) == len(problems):
            raise DataError(f"no {split} image can be read ({found[0]})", fix="repair them")
        kept = listing.subset(
            torch.tensor([index for index, one in enumerate(problems) if one is None], dtype=torch.long)
        )
        lost = [name for label, name in enumerate(class_names) if not (kept.labels == label).any()]
        if lost and split == "train":
            raise DataError(
                f"no image of class {', '.join(lost)} can be read ({found[0]})", fix="repair them, or remove the class"
            )
        return kept

    def _common_shape(
        self, paths: tuple[Path, ...], *, channels: int | None
    ) -> tuple[tuple[int, int, int], list[Header]]:
        """Returns the shape (C, H, W) that all images have once read, and the headers of the files.

        If the settings give the shape, reads only the headers of some evenly spaced files.
        """
        shape_given = self.image_size is not None and channels is not None
        step = -(-len(paths) // HEADERS) if shape_given else 1
        headers = [read_header(path) for path in paths[::step]]  # 40 us each, and slower in threads
        channels = channels or (1 if all(header.grey for header in headers) else 3)
        if self.image_size is not None:
            return (channels, self.image_size, self.image_size), headers
        first = headers[0]
        for path, header in zip(paths, headers, strict=True):
            if (header.width, header.height) != (first.width, first.height):
                raise DataError(
                    f"images must have one size, got {first.width}x{first.height} ({paths[0]}) and"
                    f" {header.width}x{header.height} ({path})",
                    fix="set data.image_size=32, or another side, to scale and crop them",
                )
        return (channels, first.height, first.width), headers


class ImageFiles:
    """Image files that are read one at a time (a `Source`), or many at once by threads.

    shape: (C, H, W) of every image once read. size: as in `read_pixels`.
    """

    def __init__(self, listing: Listing, *, shape: tuple[int, int, int], size: int | None) -> None:
        self.labels = listing.labels
        self._paths = listing.paths
        self._shape = shape
        self._size = size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with pillow_warnings():
            return self._read(index), int(self.labels[index])

    def decode(self, indices: range) -> Tensor:
        """(len(indices), C, H, W) uint8. Call it inside `pillow_warnings`."""
        pixels = torch.empty((len(indices), *self._shape), dtype=torch.uint8)

        def fill(start: int) -> None:
            for row in range(start, min(start + DECODE_CHUNK, len(indices))):
                pixels[row] = self._read(indices[row])

        # Threads, because Pillow decodes outside the interpreter lock, and threads can write into one tensor.
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(fill, range(0, len(indices), DECODE_CHUNK)):
                pass
        return pixels

    def sample(self, count: int) -> Iterator[Tensor]:
        """Yields at most `count` evenly spaced images, in tensors (n, C, H, W) uint8 of about STATISTICS_BYTES."""
        indices = range(0, len(self), -(-len(self) // count))
        chunk = max(1, STATISTICS_BYTES // math.prod(self._shape))
        for start in range(0, len(indices), chunk):
            yield self.decode(indices[start : start + chunk])

    def _read(self, index: int) -> Tensor:
        return read_pixels(self._paths[index], channels=self._shape[0], size=self._size)
