"""Published data sets that torchvision can read and download. All fit in memory.

root: the folder of the files. download: fetch files that are not there. crop_padding, flip: see `Augment`.
image_size: scale every image to a square of this side; None: as published. Networks on 16x16 images take a quarter of
the time. `Augment` shifts by pixels of the scaled images, so halve crop_padding with the side.
"""

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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

Pixels = tuple[float, ...]  # one number a channel, in [0, 1]


def _pixels(*values: float) -> Pixels:
    return tuple(value / 255 for value in values)


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet:
    """A data set of torchvision.

    name: as in results. title: as in messages. files: what torchvision looks for under the root, for messages.
    statistics: mean and standard deviation of the pixels; None to compute them.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    files: ClassVar[str]
    statistics: ClassVar[tuple[Pixels, Pixels] | None] = None

    root: str = "data"
    download: bool = False
    crop_padding: int = 4
    flip: bool = True
    image_size: int | None = None

    def split(self, root: str, *, train: bool) -> tuple[Tensor, Tensor, Sequence[str]]:
        """Returns images (N, C, H, W) uint8, labels (N,), and the names of the classes."""
        raise NotImplementedError

    def load(self) -> DataBundle:
        train, test = self._read()
        check_image_size(self.image_size)
        # Contiguous, because indexing a transposed view collects each image from places far apart in memory.
        train_images, test_images = (_scaled(one[0], self.image_size).contiguous() for one in (train, test))
        mean, std = self.statistics or channel_statistics([train_images])
        return DataBundle(
            spec=ImageSpec(
                name=self.name,
                input_shapes=(tuple(train_images.shape[1:]),),
                class_names=tuple(train[2]),
                mean=mean,
                std=std,
                image_size=self.image_size,
            ),
            train=TensorSplit(train_images, train[1]),
            test=TensorSplit(test_images, test[1]),
            augment=Augment(crop_padding=self.crop_padding, flip=self.flip),
        )

    def _read(self) -> list[tuple[Tensor, Tensor, Sequence[str]]]:
        """Returns the training split and the test split."""
        import torchvision.datasets  # noqa: F401  # here, as a torchvision that cannot be imported is no damaged file

        path, title, files = path_of(self.root, "data.root"), self.title, self.files
        for file in path.glob(files + "*" * files.endswith("/")):
            if not file.is_file():  # torchvision would wait for a pipe without end
                raise DataError(
                    f"{file} is no regular file, expected a file of {title}", fix="put the published file there"
                )
        try:
            with warnings.catch_warnings():  # numpy warns about the age of the CIFAR pickles
                warnings.simplefilter("ignore")
                return [self.split(str(path), train=train) for train in (True, False)]
        # torchvision raises RuntimeError for a missing file and for a wrong checksum, and for files without a checksum
        # AssertionError, KeyError and others.
        except Exception as error:
            if self.download:
                with contextlib.suppress(OSError):  # torchvision makes the folder first; one with files stays
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


@dataclass(frozen=True, kw_only=True)
class Cifar10(TorchvisionSet):
    """CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels, 10 classes. Source: Krizhevsky 2009."""

    name, title, files = "cifar10", "CIFAR-10", "cifar-10-batches-py/"
    # The constants of the GDAS and NAS-Bench-201 code, so that accuracies can be compared. Those of the DARTS code are
    # 0.4914, 0.4822, 0.4465 and 0.2470, 0.2435, 0.2616.
    statistics = (_pixels(125.3, 123.0, 113.9), _pixels(63.0, 62.1, 66.7))

    def split(self, root: str, *, train: bool) -> tuple[Tensor, Tensor, Sequence[str]]:
        from torchvision.datasets import CIFAR10

        return _of_cifar(CIFAR10(root, train=train, download=self.download))


@dataclass(frozen=True, kw_only=True)
class Cifar100(TorchvisionSet):
    """CIFAR-100: 50,000 + 10,000 colour images of 32x32 pixels, 100 classes. Source: Krizhevsky 2009."""

    name, title, files = "cifar100", "CIFAR-100", "cifar-100-python/"
    statistics = (_pixels(129.3, 124.1, 112.4), _pixels(68.2, 65.4, 70.4))

    def split(self, root: str, *, train: bool) -> tuple[Tensor, Tensor, Sequence[str]]:
        from torchvision.datasets import CIFAR100

        return _of_cifar(CIFAR100(root, train=train, download=self.download))


@dataclass(frozen=True, kw_only=True)
class SVHN(TorchvisionSet):
    """Street View House Numbers, cropped digits: 73,257 + 26,032 colour images of 32x32 pixels, without the extra set.

    By default images are not flipped: a mirrored digit is not a digit. Source: Netzer et al. 2011.
    """

    name, title, files = "svhn", "SVHN", "{train,test}_32x32.mat"
    flip: bool = False

    def split(self, root: str, *, train: bool) -> tuple[Tensor, Tensor, Sequence[str]]:
        from torchvision import datasets

        found = datasets.SVHN(root, split="train" if train else "test", download=self.download)
        return torch.from_numpy(found.data), torch.from_numpy(found.labels), [str(digit) for digit in range(10)]


@dataclass(frozen=True, kw_only=True)
class FashionMnist(TorchvisionSet):
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 pixels, 10 kinds of clothing. Source: Xiao et al. 2017."""

    name, title, files = "fashion_mnist", "Fashion-MNIST", "FashionMNIST/raw/*-ubyte"
    crop_padding: int = 2

    def split(self, root: str, *, train: bool) -> tuple[Tensor, Tensor, Sequence[str]]:
        from torchvision.datasets import FashionMNIST

        found = FashionMNIST(root, train=train, download=self.download)
        return found.data[:, None], found.targets, found.classes


def _of_cifar(found: Any) -> tuple[Tensor, Tensor, Sequence[str]]:
    return torch.from_numpy(found.data).permute(0, 3, 1, 2), torch.tensor(found.targets), found.classes


def _scaled(images: Tensor, size: int | None) -> Tensor:
    """(N, C, H, W) uint8 -> (N, C, size, size), scaled as image files are, so that a network reads both alike."""
    from PIL import Image

    if size is None:
        return images
    pictures = (image[0] if len(image) == 1 else image.permute(1, 2, 0) for image in images)
    return torch.stack([scaled(Image.fromarray(picture.numpy()), size) for picture in pictures])
