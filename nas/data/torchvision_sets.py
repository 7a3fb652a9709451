"""Published data sets that torchvision can read and download. All fit in memory.

root: the folder of the files. download: fetch files that are not there. crop_padding, flip: see `Augment`.
image_size: scale every image to a square of this side; None: as published. Networks on 16x16 images take a quarter of
the time. `Augment` shifts by pixels of the scaled images, so halve crop_padding with the side.
"""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.data.bundle import DataBundle
from nas.data.image_file import check_image_size, scaled
from nas.data.spec import ImageSpec
from nas.data.split import TensorSplit
from nas.data.statistics import channel_statistics
from nas.data.transforms import Augment
from nas.errors import DataError
from nas.settings.arguments import path_of


@dataclass(frozen=True, kw_only=True)
class Cifar10:
    """CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels, 10 classes. Source: Krizhevsky 2009."""

    root: str = "data"
    download: bool = False
    crop_padding: int = 4
    flip: bool = True
    image_size: int | None = None

    def load(self) -> DataBundle:
        from torchvision.datasets import CIFAR10

        train, test = _read("CIFAR-10", CIFAR10, self.root, self.download, "cifar-10-batches-py/")
        return _bundle(
            name="cifar10",
            train=_nchw(train),
            test=_nchw(test),
            class_names=tuple(train.classes),
            # The constants of the GDAS and NAS-Bench-201 code, so that accuracies can be compared. Those of the DARTS
            # code are 0.4914, 0.4822, 0.4465 and 0.2470, 0.2435, 0.2616.
            statistics=(_pixels(125.3, 123.0, 113.9), _pixels(63.0, 62.1, 66.7)),
            augment=Augment(crop_padding=self.crop_padding, flip=self.flip),
            image_size=self.image_size,
        )


@dataclass(frozen=True, kw_only=True)
class Cifar100:
    """CIFAR-100: 50,000 + 10,000 colour images of 32x32 pixels, 100 classes. Source: Krizhevsky 2009."""

    root: str = "data"
    download: bool = False
    crop_padding: int = 4
    flip: bool = True
    image_size: int | None = None

    def load(self) -> DataBundle:
        from torchvision.datasets import CIFAR100

        train, test = _read("CIFAR-100", CIFAR100, self.root, self.download, "cifar-100-python/")
        return _bundle(
            name="cifar100",
            train=_nchw(train),
            test=_nchw(test),
            class_names=tuple(train.classes),
            statistics=(_pixels(129.3, 124.1, 112.4), _pixels(68.2, 65.4, 70.4)),
            augment=Augment(crop_padding=self.crop_padding, flip=self.flip),
            image_size=self.image_size,
        )


@dataclass(frozen=True, kw_only=True)
class SVHN:
    """Street View House Numbers, cropped digits: 73,257 + 26,032 colour images of 32x32 pixels, without the extra set.

    By default images are not flipped: a mirrored digit is not a digit. Source: Netzer et al. 2011.
    """

    root: str = "data"
    download: bool = False
    crop_padding: int = 4
    flip: bool = False
    image_size: int | None = None

    def load(self) -> DataBundle:
        from torchvision import datasets

        def split(root: str, *, train: bool, download: bool) -> datasets.SVHN:
            return datasets.SVHN(root, split="train" if train else "test", download=download)

        train, test = _read("SVHN", split, self.root, self.download, "{train,test}_32x32.mat")
        return _bundle(
            name="svhn",
            train=(torch.from_numpy(train.data), torch.from_numpy(train.labels)),
            test=(torch.from_numpy(test.data), torch.from_numpy(test.labels)),
            class_names=tuple(str(digit) for digit in range(10)),
            statistics=None,
            augment=Augment(crop_padding=self.crop_padding, flip=self.flip),
            image_size=self.image_size,
        )


@dataclass(frozen=True, kw_only=True)
class FashionMnist:
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 pixels, 10 kinds of clothing. Source: Xiao et al. 2017."""

    root: str = "data"
    download: bool = False
    crop_padding: int = 2
    flip: bool = True
    image_size: int | None = None

    def load(self) -> DataBundle:
        from torchvision.datasets import FashionMNIST

        train, test = _read("Fashion-MNIST", FashionMNIST, self.root, self.download, "FashionMNIST/raw/*-ubyte")
        return _bundle(
            name="fashion_mnist",
            train=(train.data[:, None], train.targets),
            test=(test.data[:, None], test.targets),
            class_names=tuple(train.classes),
            statistics=None,
            augment=Augment(crop_padding=self.crop_padding, flip=self.flip),
            image_size=self.image_size,
        )


def _read(title: str, split: Callable[..., Any], root: str, download: bool, files: str) -> tuple[Any, Any]:
    """Returns torchvision's (train, test) objects. files: what torchvision looks for under the root, for messages."""
    path = path_of(root, "data.root")
    for file in path.glob(files + "*" * files.endswith("/")):
        if not file.is_file():  # torchvision would wait for a pipe without end
            raise DataError(
                f"{file} is no regular file, expected a file of {title}", fix="put the published file there"
            )
    try:
        with warnings.catch_warnings():  # numpy warns about the age of the CIFAR pickles
            warnings.simplefilter("ignore")
            return split(str(path), train=True, download=download), split(str(path), train=False, download=download)
    # torchvision raises RuntimeError for a missing file and for a wrong checksum, and for files without a checksum
    # AssertionError, KeyError and others.
    except Exception as error:
        if download:
            with contextlib.suppress(OSError):  # torchvision makes the folder first; keep the folder if it has files
                path.rmdir()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"could not download {title} to {path} ({reason})",
                fix=f"connect to the network, or put the published files there as {path / files}",
            ) from error
        raise DataError(
            f"{title} is not in {path}, or is damaged: expected {path / files}",
            fix="set data.root to where it is, or data.download=true to fetch it",
        ) from error


def _pixels(*values: float) -> tuple[float, ...]:
    return tuple(value / 255 for value in values)


def _nchw(cifar: Any) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(cifar.data).permute(0, 3, 1, 2), torch.tensor(cifar.targets)


def _scaled(images: Tensor, size: int | None) -> Tensor:
    """(N, C, H, W) uint8 -> (N, C, size, size), scaled as image files are, so that a network reads both alike."""
    from PIL import Image

    if size is None:
        return images
    pictures = (image[0] if len(image) == 1 else image.permute(1, 2, 0) for image in images)
    return torch.stack([scaled(Image.fromarray(picture.numpy()), size) for picture in pictures])


def _bundle(
    *,
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    class_names: tuple[str, ...],
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None,
    augment: Augment,
    image_size: int | None,
) -> DataBundle:
    check_image_size(image_size)
    # Contiguous, because indexing a transposed view collects each image from places far apart in memory.
    train_images, test_images = (_scaled(images, image_size).contiguous() for images in (train[0], test[0]))
    mean, std = statistics or channel_statistics([train_images])
    return DataBundle(
        spec=ImageSpec(
            name=name,
            input_shapes=(tuple(train_images.shape[1:]),),
            class_names=class_names,
            mean=mean,
            std=std,
            image_size=image_size,
        ),
        train=TensorSplit(train_images, train[1]),
        test=TensorSplit(test_images, test[1]),
        augment=augment,
    )
