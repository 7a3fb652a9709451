"""Generated images for tests: a fixed pattern for each class, under noise. Results on them mean nothing."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from nas.data.bundle import DataBundle
from nas.data.spec import ImageSpec
from nas.data.split import TensorSplit
from nas.data.statistics import channel_statistics
from nas.data.transforms import Augment
from nas.errors import ConfigError

PIXELS = 2**28  # of all images and patterns; CIFAR-10 has 184 million
CHUNK = 2**22  # pixels that are drawn at a time, as each takes 20 bytes while it is drawn


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Generated images.

    train, test: numbers of images; the classes take turns. size: height and width in pixels.
    """

    train: int = 256
    test: int = 64
    classes: int = 4
    channels: int = 3
    size: int = 8
    seed: int = 0
    crop_padding: int = 0
    flip: bool = False

    def load(self) -> DataBundle:
        for field, least in (("classes", 2), ("channels", 1), ("size", 1), ("train", 1), ("test", 1)):
            if getattr(self, field) < least:
                raise ConfigError(
                    f"data.{field} must be at least {least}, got {getattr(self, field)}",
                    fix=f"set data.{field}={least}",
                )
        if (pixels := (self.train + self.test + self.classes) * self.channels * self.size**2) > PIXELS:
            raise ConfigError(
                f"data.train, test and classes of data.channels x data.size^2 pixels are {pixels} in all, expected at "
                f"most {PIXELS}",
                fix="set data.train=256, or data.size=8",
            )
        generator = Generator().manual_seed(self.seed)
        shape = (self.channels, self.size, self.size)
        patterns = torch.randint(256, (self.classes, *shape), generator=generator).float()
        train_images, train_labels = self._draw(self.train, patterns, generator)
        test_images, test_labels = self._draw(self.test, patterns, generator)
        mean, std = channel_statistics([train_images])
        return DataBundle(
            spec=ImageSpec(
                name="synthetic",
                input_shapes=((self.channels, self.size, self.size),),
                class_names=tuple(f"class_{index}" for index in range(self.classes)),
                mean=mean,
                std=std,
            ),
            train=TensorSplit(train_images, train_labels),
            test=TensorSplit(test_images, test_labels),
            augment=Augment(crop_padding=self.crop_padding, flip=self.flip),
        )

    def _draw(self, count: int, patterns: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % self.classes
        images = torch.empty(count, *patterns.shape[1:], dtype=torch.uint8)
        for rows in torch.split(torch.arange(count), max(1, CHUNK // patterns[0].numel())):
            noise = torch.randint(256, (len(rows), *patterns.shape[1:]), generator=generator)
            images[rows] = (0.5 * patterns[labels[rows]] + 0.5 * noise).to(torch.uint8)
        return images, labels
